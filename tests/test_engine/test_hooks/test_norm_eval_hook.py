# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Batch norms of the backbone learn scale and shift, not statistics."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModule
from torch import nn

from _tiny import TRUNKS, build_runner, model_cfg, snapshot
from vim_mm.engine.hooks import NormEvalHook


@pytest.mark.parametrize('hooked', [True, False])
def test_statistics_stand_still(hooked: bool, tmp_path: Path) -> None:
    cfg = model_cfg('seg', {})
    cfg.backbone = dict(
        TRUNKS['resnet'], out_indices=(2, ), norm_eval=False)
    hooks = [dict(type='vim_mm.NormEvalHook')] * hooked
    run = build_runner('seg', cfg, tmp_path, custom_hooks=hooks)
    before = snapshot(run.model)
    run.train()
    after = snapshot(run.model)
    changed = {key for key in before
               if not torch.equal(before[key], after[key])}
    assert 'backbone.layer1.0.bn1.weight' in changed
    assert ('backbone.layer1.0.bn1.running_var' in changed) != hooked
    # the head's own were made for this task
    assert 'decode_head.convs.0.bn.running_var' in changed


def test_models_inside_a_model() -> None:
    """As semi-supervised detectors and wrappers have them."""
    model = BaseModule()
    run = SimpleNamespace(model=model)
    with pytest.raises(ValueError, match='BaseModule has none.*leave'):
        NormEvalHook().before_train(run)
    for name in ('student', 'teacher'):
        part = nn.ModuleDict(
            dict(
                backbone=nn.Sequential(nn.BatchNorm2d(2)),
                head=nn.BatchNorm2d(2)))
        model.add_module(name, part)
    model.train()
    NormEvalHook().before_train(run)
    NormEvalHook().before_train_iter(run, 0)
    for part in (model.student, model.teacher):
        assert not part.backbone[0].training and part.head.training
