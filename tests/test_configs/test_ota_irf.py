# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Configs of releases and of IRF: they parse, build, and say what they do."""

from pathlib import Path

import pytest
from _upstream import release
from mmengine.config import Config
from mmengine.registry import HOOKS, TRANSFORMS, DefaultScope

from vim_mm.models import build_model
from vim_mm.models.distillers import ConsistentModel
from vim_mm.models.generators import UpstreamCard, VQAutoEncoder

ROOT = Path(__file__).resolve().parents[2] / 'configs' / 'ota'
RELEASES = sorted(path.name for path in ROOT.glob('release_*.py'))
TRAININGS = sorted(path.name for pattern in ('irf*.py', 'lp-ft*.py')
                   for path in ROOT.glob(pattern))


@pytest.mark.parametrize('name', RELEASES)
def test_releases(name: str) -> None:
    cfg = Config.fromfile(ROOT / name)
    model = build_model(cfg)
    assert isinstance(model, VQAutoEncoder)
    UpstreamCard(
        **cfg.release_card, num_images=1, architecture=model.architecture)
    train, held_out = (cfg[f'{part}_dataloader'].dataset
                       for part in ('train', 'held_out'))
    assert train.data_prefix != held_out.data_prefix
    # one size, so that images can be compared
    assert held_out.pipeline[-2].type == 'mmpretrain.CenterCrop'
    assert cfg.param_scheduler.total_steps == cfg.train_cfg.max_iters


def without_files(cfg: dict) -> None:
    """Leave out weights, which users bring."""
    for key, value in list(cfg.items()):
        if key == 'init_cfg' and value.get('type') == 'Pretrained':
            del cfg[key]
        elif isinstance(value, dict):
            without_files(value)


@pytest.mark.parametrize('name', TRAININGS)
def test_trainings(name: str, tmp_path: Path) -> None:
    cfg = Config.fromfile(ROOT / name)
    folder = release(tmp_path / 'r')
    without_files(cfg.model)
    if 'release' in cfg.model:
        cfg.model.release = folder
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build_model(cfg)
        hook = cfg.custom_hooks[0]
        assert hook.type == 'vim_mm.WarmHeadHook'
        if hook.release:
            hook.release = folder
        built = HOOKS.build(hook)
    assert (built.release is None) == name.startswith('lp-ft')
    assert isinstance(model, ConsistentModel) == ('consistent' in name)
    few = cfg.train_dataloader.dataset
    assert few.type == 'vim_mm.FewShot'
    stages = [stage.type for stage in few.dataset.pipeline]
    assert ('RandomApply' in stages) == ('both' in name)
    if 'both' in name:
        share = few.dataset.pipeline[-2]
        share.transforms[0].release = folder
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            TRANSFORMS.build(share)
