# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A neck or head for other features is named before training."""

from pathlib import Path
from typing import Optional

import pytest
import torch
from mmengine.registry import init_default_scope

from _tiny import (DIMS, KINDS, SCOPES, add_modules, build_model, build_runner,
                   fusion_neck, model_cfg, vit)
from vim_mm.models.channels import check_channels
from vim_mm.registry import MODELS

BACKBONE = dict(trunk=vit(), new_module='n')
#: Necks of the three libraries as base configs have them.
NECKS = dict(
    fpn=dict(
        type='mmdet.FPN', in_channels=[256, 512, 1024, 2048],
        out_channels=DIMS, num_outs=5),
    fpn_of_three=dict(
        type='mmdet.FPN', in_channels=[512, 1024, 2048], out_channels=DIMS,
        num_outs=3),
    seg_fpn=dict(
        type='mmseg.FPN', in_channels=[256, 512, 1024], out_channels=DIMS,
        num_outs=4),
    multilevel=dict(
        type='mmseg.MultiLevelNeck', in_channels=[768] * 3, out_channels=DIMS,
        scales=[1, 1, 1]),
    channel_mapper=dict(
        type='mmdet.ChannelMapper', in_channels=[512, 1024, 2048],
        out_channels=DIMS, num_outs=4),
    linear=dict(
        type='mmpretrain.LinearNeck', in_channels=512, out_channels=DIMS))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', NECKS)
def test_necks_of_base_configs(name: str, kind: str) -> None:
    model = build_model(kind, dict(BACKBONE), NECKS[name])
    with pytest.raises(
            ValueError,
            match=r"does not take .* \[32, 32, 32\] .*in_channels='auto'"):
        check_channels(model)


@pytest.mark.parametrize('kind', KINDS)
def test_what_fits_is_left_alone(kind: str) -> None:
    model = build_model(kind, dict(BACKBONE))
    model.train()
    before = torch.get_rng_state()
    check_channels(model)
    assert model.neck.training and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(('kind', 'head', 'sentence'), [
    ('cls', dict(in_channels=2048), 'LinearClsHead reads 2048 .* gives .32'),
    ('det', dict(in_channels=256), r'FCOSHead reads 256 .* gives \[32\]'),
    ('seg', dict(in_channels=2048), r'FCNHead reads 2048 .* gives \[32\]'),
    ('seg', dict(in_index=3), 'FCNHead reads the levels `in_index=3`, .* 1'),
    ('seg', dict(in_channels=[DIMS, DIMS], in_index=[0, 0],
                 input_transform='resize_concat'), None),
    ('seg', dict(in_channels=[DIMS, 512], in_index=[0, 0],
                 input_transform='resize_concat'), 'FCNHead reads'),
])
def test_heads_of_base_configs(kind: str, head: dict,
                               sentence: Optional[str]) -> None:
    init_default_scope(SCOPES[kind])
    cfg = model_cfg(kind, dict(BACKBONE), fusion_neck(kind))
    cfg[dict(cls='head', det='bbox_head', seg='decode_head')[kind]].update(
        head)
    model = MODELS.build(cfg)
    if sentence is None:
        check_channels(model)
        return
    with pytest.raises(ValueError, match=sentence):
        check_channels(model)


def test_streams_without_a_neck_that_weighs_them() -> None:
    init_default_scope('mmseg')
    model = MODELS.build(model_cfg('seg', dict(BACKBONE)))
    add_modules(model.backbone, 'a')
    with pytest.raises(ValueError, match=r"for each of \['n', 'a'\]"):
        check_channels(model)


def test_a_run_is_refused(tmp_path: Path) -> None:
    run = build_runner('det',
                       model_cfg('det', dict(BACKBONE), NECKS['fpn']),
                       tmp_path)
    with pytest.raises(ValueError, match='The neck FPN does not take'):
        run.train()


@pytest.mark.parametrize('kind', ['det', 'seg'])
def test_a_model_without_a_data_preprocessor(kind: str,
                                             tmp_path: Path) -> None:
    cfg = model_cfg(kind, dict(BACKBONE), fusion_neck(kind))
    del cfg['data_preprocessor']
    run = build_runner(kind, cfg, tmp_path)
    with pytest.raises(ValueError, match='as a list .*`data_preprocessor`'):
        run.train()
