# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Levels that nobody reads leave no parameter without a gradient.

A data-parallel wrapper waits for all of them, unless it is told to look for
unused ones in every step.
"""

from pathlib import Path

import pytest
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from torch import nn

from _tiny import (DIMS, LEVELS, PATCH, SCOPES, Pictures, add_modules,
                   build_backbone, model_cfg, save_trunk)
from vim_mm.registry import MODELS
from vim_mm.zoo import save_module

LADDER = dict(type='SideLadder', hidden_dims=4)
#: The stock neck that skips the first level, as in RetinaNet's base.
FPN = dict(
    type='mmdet.FPN',
    in_channels=LEVELS,
    out_channels=DIMS,
    start_level=1,
    num_outs=2)


def pyramid(**kwargs) -> dict:
    neck = dict(
        type='vim_mm.ViMFusionNeck',
        in_channels=LEVELS,
        scales=(1, 1, 1),
        out_channels=DIMS,
        pre_norm_cfg=dict(type='mmpretrain.LN2d'))
    return dict(neck, **kwargs)


SKIPS = pyramid(sources=[[1], [2]], scales=(1, 1))
#: By name: adapters of the backbone, its neck, and who reads its levels.
CASES = dict(
    fpn_skips_a_level=(None, pyramid(inner_neck=FPN), 'det seg cls'),
    sources_skip_a_level=(None, SKIPS, 'det seg cls'),
    last_level_of_a_pyramid=(None, pyramid(), 'seg cls'),
    last_level_of_a_ladder=(LADDER, None, 'seg cls'),
    ladder_under_a_stock_neck=(LADDER, FPN, 'det'),
    streams=(None, pyramid(modules=['a', 'n']), 'seg cls'),
    streams_of_ladders=(LADDER, dict(SKIPS, modules=['a', 'n']), 'det seg'),
)


def unread_cfg(case: str, kind: str, folder: Path) -> ConfigDict:
    """A model that leaves levels of its backbone or neck unread."""
    adapter, neck, _ = CASES[case]
    trunk = save_trunk(folder / 'trunk.pth')
    backbone = dict(trunk=trunk, new_module='n', adapter=adapter)
    if neck is not None and 'modules' in neck:
        midstream = build_backbone(trunk)
        add_modules(midstream, 'a', **(adapter or {}))
        save_module(midstream, 'a', folder / 'zoo')
        backbone.update(zoo=str(folder / 'zoo'), modules=['a'])
    cfg = model_cfg(kind, backbone, neck)
    if kind == 'det':  # it reads both levels
        cfg.bbox_head.update(
            strides=[PATCH] * 2, regress_ranges=((-1, 30), (30, 1e8)))
    elif kind == 'cls':
        pool = dict(type='mmpretrain.GlobalAveragePooling')
        cfg.neck = [neck, pool] if neck else pool
    return cfg


def unreached(model: nn.Module) -> list:
    return [
        name for name, param in model.named_parameters()
        if param.requires_grad and param.grad is None
    ]


@pytest.mark.parametrize(
    ('case', 'kind'),
    [(case, kind) for case in CASES for kind in CASES[case][2].split()])
def test_every_parameter_gets_a_gradient(case: str, kind: str,
                                         tmp_path: Path) -> None:
    init_default_scope(SCOPES[kind])
    model = MODELS.build(unread_cfg(case, kind, tmp_path)).train()
    data = model.data_preprocessor(Pictures(kind, 4).batch(), True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert unreached(model) == []
