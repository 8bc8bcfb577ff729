# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Necks and heads whose `in_channels` is 'auto' are those of typed widths."""

import re
from pathlib import Path
from typing import Any, Dict, Optional

import mmdet.registry
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT
from mmengine.registry import init_default_scope
from torch import nn

from _tiny import (DIMS, KINDS, SCOPES, SIZE, TRUNKS, Pictures, add_modules,
                   build_backbone, build_runner, fusion_neck, model_cfg, same,
                   save_trunk, snapshot, vit)
from vim_mm.models import build_model
from vim_mm.models.channels import check_channels
from vim_mm.models.necks import StandardizedPooling, ViMFusionNeck
from vim_mm.registry import MODELS
from vim_mm.zoo import save_module

INNER = dict(type='mmdet.FPN', out_channels=16, num_outs=1)
FUSION = dict(
    type='vim_mm.ViMFusionNeck', scales=[1], sources=[[0, 1, 2]],
    out_channels=24)
FPN = dict(type='mmdet.FPN', out_channels=16, num_outs=3)


def both(kind: str, neck: Any, width: int, typed: Any,
         backbone: Optional[dict] = None, inner: Optional[list] = None
         ) -> Dict[str, Config]:
    """A whole config of typed widths, and the same of 'auto'."""
    cfgs = {}
    for name in ('typed', 'auto'):
        auto = name == 'auto'
        own = dict(neck)
        own['in_channels'] = 'auto' if auto else typed
        if 'inner_neck' in own:
            own['inner_neck'] = dict(
                own['inner_neck'], in_channels='auto' if auto else inner)
        model = model_cfg(kind, backbone or dict(trunk=vit()), own)
        head = {'cls': 'head', 'det': 'bbox_head', 'seg': 'decode_head'}[kind]
        model[head].in_channels = 'auto' if auto else width
        cfgs[name] = Config(dict(model=model, default_scope=SCOPES[kind]))
    return cfgs


def built(cfg: Config) -> nn.Module:
    torch.manual_seed(0)
    return build_model(cfg)


NECKS = [
    (FUSION, 24, [DIMS] * 3, None),
    (dict(FUSION, inner_neck=INNER), 16, [DIMS] * 3, [24]),
    (dict(type='vim_mm.ViMFusionNeck', scales=[1, .5, .5],
          norm_cfg=dict(type='BN'),
          inner_neck=dict(FPN, num_outs=3)), 16, [DIMS] * 3, [DIMS] * 3),
    (FPN, 16, [DIMS] * 3, None),
]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('neck', 'width', 'typed', 'inner'), NECKS)
def test_a_model_is_that_of_typed_widths(kind, neck, width, typed, inner):
    cfgs = both(kind, neck, width, typed, inner=inner)
    text = cfgs['auto'].pretty_text
    first, second = built(cfgs['typed']), built(cfgs['auto'])
    assert same(snapshot(first), snapshot(second))
    assert {n: m.training for n, m in first.named_modules()} == {
        n: m.training for n, m in second.named_modules()}
    assert cfgs['auto'].pretty_text == text  # as dumped for a later test


@pytest.mark.parametrize('kind', KINDS)
def test_a_run_trains_and_tests(kind: str, tmp_path: Path) -> None:
    neck = dict(FUSION, inner_neck=INNER)
    width = 16
    if kind == 'cls':
        neck['inner_neck'] = dict(
            type='vim_mm.StandardizedPooling', num_extra_tokens=0)
        width = 2 * 24
    cfg = both(kind, neck, width, None)['auto'].model
    if kind == 'det':
        cfg.bbox_head.strides = [14]
    runner = build_runner(kind, cfg, tmp_path)
    runner.train()
    assert runner.iter == 4
    # the optimizer was built with all of it
    held = {id(p) for g in runner.optim_wrapper.param_groups
            for p in g['params']}
    assert {id(p) for p in runner.model.neck.parameters()} <= held
    with torch.no_grad():
        data = runner.model.data_preprocessor(Pictures(kind).batch())
        assert runner.model.eval()(**data, mode='predict')


TRUNK_WIDTHS = dict(
    vit=[DIMS] * 3, swin=[8, 16, 32, 64], convnext=[8, 8, 16, 16],
    resnet=[8, 16, 32, 64], timm=[16, 24, 40, 112, 320])


@pytest.mark.parametrize('kind', list(TRUNK_WIDTHS))
def test_widths_of_trunks(kind: str) -> None:
    widths = TRUNK_WIDTHS[kind]
    size = SIZE if kind == 'vit' else 64
    backbone = MODELS.build(dict(
        type='vim_mm.ViMBackbone', trunk=TRUNKS[kind], probe_size=size))
    assert backbone.out_channels == widths
    outputs = backbone(torch.randn(1, 3, 2 * size, size))
    assert [level.shape[1] for level in outputs] == widths


@pytest.mark.parametrize(('out_type', 'pooled'), [
    ('featmap', 2 * 2 * DIMS), ('raw', 2 * 3 * DIMS),
    ('cls_token', 2 * DIMS)])
def test_pooled_widths(out_type: str, pooled: int) -> None:
    trunk = vit(out_indices=[1, 2], out_type=out_type)
    cfg = model_cfg('cls', dict(trunk=trunk),
                    dict(type='vim_mm.TokenPooling', in_channels='auto'))
    cfg.head.in_channels = 'auto'
    model = build_model(Config(dict(model=cfg, default_scope='mmpretrain')))
    assert model.backbone.out_channels == [DIMS, DIMS]
    assert model.neck.mean.shape == (pooled, )
    assert model.head.fc.in_features == pooled
    x = torch.randn(2, 3, SIZE, SIZE)
    assert model.head(model.neck(model.backbone(x))).shape == (2, 2)


def test_streams(tmp_path: Path) -> None:
    trunk, zoo = save_trunk(tmp_path / 'trunk.pth'), str(tmp_path / 'zoo')
    midstream = build_backbone(trunk)
    add_modules(midstream, 'a', 'b')
    for name in 'ab':
        save_module(midstream, name, zoo)
    neck = dict(fusion_neck('cls', ['a', 'b']), in_channels='auto')
    cfg = model_cfg('cls', dict(trunk=trunk, zoo=zoo, modules=['a', 'b']),
                    neck)
    cfg.head.in_channels = 'auto'
    model = build_model(Config(dict(model=cfg, default_scope='mmpretrain')))
    assert model.neck.projections[0].in_channels == 3 * DIMS
    assert model.head.fc.in_features == DIMS
    cfg.backbone.modules = ['a']
    with pytest.raises(ValueError, match='ViMFusionNeck does not take .*'
                       'expects 2 streams'):
        build_model(Config(dict(model=cfg, default_scope='mmpretrain')))


def test_backbones_of_other_types() -> None:
    """As in full fine-tuning."""
    cfg = model_cfg('seg', {}, dict(FUSION, in_channels='auto'))
    cfg.backbone = vit()
    model = build_model(Config(dict(model=cfg, default_scope='mmseg')))
    assert model.neck.projections[0].in_channels == 3 * DIMS


def test_a_head_that_picks_levels_and_no_neck() -> None:
    cfg = model_cfg('seg', dict(trunk=TRUNKS['resnet'], probe_size=64))
    cfg.decode_head.update(
        in_channels='auto', in_index=[1, 3], input_transform='resize_concat')
    model = build_model(Config(dict(model=cfg, default_scope='mmseg')))
    assert model.decode_head.in_channels == 16 + 64


@pytest.mark.parametrize('own', ['auto', 64])
@pytest.mark.parametrize('index', [7, -5, [1, 4], (0, 1, 2, 9)], ids=str)
def test_levels_that_there_are_not(index: Any, own: Any) -> None:
    cfg = model_cfg('seg', dict(trunk=TRUNKS['resnet'], probe_size=64))
    several = isinstance(index, (list, tuple))
    cfg.decode_head.update(
        in_channels=[8] * len(index) if several and own != 'auto' else own,
        in_index=index, input_transform='resize_concat' if several else None)
    with pytest.raises(ValueError, match='FCNHead reads the levels '
                       f'`in_index={re.escape(str(index))}`, .* there are 4'):
        check_channels(build_model(
            Config(dict(model=cfg, default_scope='mmseg'))))


def test_lists_of_necks_and_wrappers() -> None:
    init_default_scope('mmpretrain')
    cfg = model_cfg('cls', dict(trunk=vit()), [
        dict(FUSION, in_channels='auto'),
        dict(type='vim_mm.StandardizedPooling', in_channels='auto')])
    cfg.head.in_channels = 'auto'
    wrapper = dict(type='mmpretrain.AverageClsScoreTTA', module=cfg)
    for model in (MODELS.build(cfg), ROOT.build(wrapper).module):
        assert model.neck[1].mean.shape == (2 * 24, )
        assert model.head.fc.in_features == 2 * 24


def test_mmdet_builds_it_without_our_help() -> None:
    cfg = both('det', FPN, 16, None)['auto']
    init_default_scope('mmdet')
    model = mmdet.registry.MODELS.build(cfg.model)
    assert [c.conv.in_channels for c in model.neck.lateral_convs] == [DIMS] * 3


@pytest.mark.parametrize('neck', [
    dict(FUSION, in_channels='auto'), dict(FPN, in_channels='auto'),
    dict(type='vim_mm.StandardizedPooling', in_channels='auto')])
def test_alone_nobody_tells(neck: dict) -> None:
    with pytest.raises(ValueError, match="'auto'` of .* whole model"):
        MODELS.build(neck)


@pytest.mark.parametrize('kind', [StandardizedPooling, ViMFusionNeck])
def test_from_python_nobody_tells(kind: type) -> None:
    with pytest.raises(ValueError, match=f'{kind.__name__} can only be known'):
        kind(in_channels='auto')


def test_a_failed_build_leaves_nothing_open() -> None:
    cfg = both('det', FPN, 16, None)['auto'].model
    init_default_scope('mmdet')
    broken = dict(cfg, bbox_head=dict(cfg.bbox_head, strides=None))
    with pytest.raises(TypeError):
        MODELS.build(broken)
    with pytest.raises(ValueError, match='whole model'):
        MODELS.build(dict(FPN, in_channels='auto'))
