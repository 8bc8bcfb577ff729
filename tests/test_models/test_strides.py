# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Strides of students and of models of several tasks are looked at, too."""

import pytest
from mmengine.registry import DefaultScope
from torch import nn

import _distill
import _multitask
from vim_mm.models.channels import check_channels
from vim_mm.registry import MODELS


def scaled(cfg: dict, factor: int) -> None:
    """Other strides of a detector's anchors or points."""
    head = cfg['bbox_head']
    for part in (head, head.get('anchor_generator'), head.get('prior_gen')):
        if part and 'strides' in part:
            part['strides'] = [factor * step for step in part['strides']]


def student(factor: int, tmp_path: object) -> nn.Module:
    cfg = _distill.distiller_cfg(
        tmp_path, 'det', {('backbone[0]', 'backbone[0]'): _distill.FEATURES})
    scaled(cfg['student'], factor)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(cfg)


def of_tasks(factor: int, _: object) -> nn.Module:
    cfg = _multitask.multitask_cfg('cls', 'det')
    scaled(cfg.tasks['det'], factor)
    with DefaultScope.overwrite_default_scope('vim_mm'):
        return MODELS.build(cfg)


@pytest.mark.parametrize('made', [student, of_tasks])
@pytest.mark.parametrize('factor', [1, 2])
def test_strides(made: object, factor: int, tmp_path: object) -> None:
    model = made(factor, tmp_path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    if factor == 1:
        check_channels(model)
    else:
        with pytest.raises(ValueError, match='has a stride of .* stands for'):
            check_channels(model)
    assert all((value == before[key]).all()
               for key, value in model.state_dict().items())
