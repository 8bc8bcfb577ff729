# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Configs of TDMR build at full size, without weights, and take a step."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.structures import DataSample

from vim_mm.models import build_model
from vim_mm.models.distillers import Outside, tdmr_distiller

ROOT = Path(__file__).resolve().parents[2] / 'configs/tdmr'
ALL = sorted(path.name for path in ROOT.glob('*.py'))
SETTINGS = dict(clothing_hint=(True, False), clothing_aft=(True, False))
SETTINGS['clothing_linear-probe-kd'] = (False, True)
SETTINGS['clothing_student-alone'] = (False, False)


@pytest.fixture(autouse=True)
def without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Foundation models as their configs say, with random weights."""

    def build(cfg: dict, what: str) -> Outside:
        return Outside(build_model(Config.fromfile(cfg['config'])))

    monkeypatch.setattr(tdmr_distiller, 'build_outside', build)


@pytest.mark.parametrize('name', ALL)
def test_takes_a_step(name: str) -> None:
    cfg = Config.fromfile(ROOT / name)
    text = (ROOT / name).read_text()
    assert f'configs/tdmr/{name}' in text and 'Expected result' in text
    init_default_scope(cfg.default_scope)
    model = build_model(cfg).train()
    model.proxy.fitted.fill_(1)
    wanted = SETTINGS.get(Path(name).stem, (True, True))
    assert (model.feature_loss is not None,
            model.logits_loss is not None) == wanted
    samples = [DataSample().set_gt_label(index % 2) for index in range(4)]
    losses = model.loss(torch.randn(4, 3, 112, 112), samples)
    assert all(torch.isfinite(value) for value in losses.values())
    hooks = [hook['type'] for hook in cfg.custom_hooks]
    assert hooks[0] == 'vim_mm.CostHook'
    assert ('vim_mm.ProxyHook' in hooks) == any(wanted)
