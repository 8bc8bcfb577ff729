# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Configs of MTHT: their models at full size, without storage, and recipes."""

from functools import lru_cache
from pathlib import Path
from typing import Iterator

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.config import utils as config_utils

from _tiny import first_of
from vim_mm.models import build_model
from vim_mm.models.moe import moe_layers

ROOT = Path(__file__).resolve().parents[2] / 'configs/mtht'
ALL = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob('*.py'))
JOINT = [name for name in ALL if name.endswith('in1k-coco-ade20k.py')]
#: backbone in M parameters; layers of experts, E and hidden width of stage 1
SIZES = {
    'moe-davit-tiny': (288.8, 12, 64, 96),
    'moe-davit-small': (272.5, 24, 32, 96),
    'moe-davit-base': (152.8, 12, 16, 128),
    'davit-tiny': (27.6, 0, 0, 0),
    'davit-small': (49.0, 0, 0, 0),
    'davit-base': (86.9, 0, 0, 0)
}


@pytest.fixture(scope='module', autouse=True)
def quick_bases() -> Iterator[None]:
    """`mmdet::…` in a base reads all of mmdet's metafiles: each only once."""
    with pytest.MonkeyPatch.context() as patch:
        load = lru_cache(maxsize=None)(config_utils.load)
        patch.setattr(config_utils, 'load', load)
        yield


def test_there_are_three_sizes_and_their_twins() -> None:
    assert [name.rpartition('_')[0] for name in JOINT] == sorted(SIZES)


@pytest.mark.parametrize('name', first_of(
    sorted(JOINT, key=lambda name: 'tiny' not in name), 2))
def test_joint_models_and_recipes(name: str) -> None:
    cfg = Config.fromfile(ROOT / name)
    with torch.device('meta'):
        model = build_model(cfg)
    params, num_layers, num_experts, hidden = SIZES[name.rpartition('_')[0]]
    total = sum(p.numel() for p in model.backbone.parameters()) / 1e6
    assert total == pytest.approx(params, abs=.05)
    layers = list(moe_layers(model.backbone).values())
    assert len(layers) == num_layers
    if layers:
        assert len(layers[0].experts) == num_experts and layers[0].k == 4
        assert layers[0].experts.hidden == hidden
        assert layers[0].tasks == ['cls', 'det', 'seg']
        assert layers[0].gate_scale == 1
        assert model.routing.weight == 5e-4
    assert (cfg.model.get('routing') is None) == (not layers)
    assert model.loss_weights == dict(cls=1., det=.6, seg=.2)
    assert cfg.train_cfg.weights == dict(cls=15, det=10, seg=5)
    # without these OneCycleLR trains at a rate of zero, or of its start
    assert cfg.param_scheduler.total_steps == cfg.train_cfg.max_iters
    assert cfg.param_scheduler.eta_max == cfg.optim_wrapper.optimizer.lr
    assert [cfg.train_dataloader[t].batch_size
            for t in ('cls', 'det', 'seg')] == [64, 2, 2]
    assert set(cfg.val_evaluator) == {'cls', 'det', 'seg'}


@pytest.mark.parametrize('name', [n for n in ALL if n not in JOINT])
def test_others_parse_and_say_what_they_are(name: str) -> None:
    cfg = Config.fromfile(ROOT / name)
    assert cfg.model and cfg.train_dataloader and cfg.optim_wrapper
    text = (ROOT / name).read_text()
    assert f'configs/mtht/{name}' in text and 'xpect' in text


@pytest.mark.parametrize('name', [n for n in ALL if n.startswith('single/')])
def test_single_tasks_build(name: str) -> None:
    with torch.device('meta'):
        model = build_model(Config.fromfile(ROOT / name))
    total = sum(p.numel() for p in model.parameters()) / 1e6
    # as DaViT's authors count them
    assert total == pytest.approx(
        dict(cls=28.4, det=38.5, seg=60.)[dict(
            imagenet1k='cls', coco='det', ade20k='seg')[Path(
                name).stem.rpartition('_')[2]]],
        abs=.1)


def test_metafile_and_readme_list_every_config() -> None:
    meta = yaml.safe_load((ROOT / 'metafile.yml').read_text())
    listed = sorted(model['Config'] for model in meta['Models'])
    full = [n for n in ALL if n in JOINT or n.startswith('single/')]
    assert listed == [f'configs/mtht/{name}' for name in full]
    readme = (ROOT / 'README.md').read_text()
    for name in full:
        assert f']({name})' in readme, name
