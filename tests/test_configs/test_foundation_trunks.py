# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The configs of foundation models, in a tiny random form."""

from pathlib import Path

import pytest
import timm
import torch
from _weights import drawn
from mmengine.config import Config
from mmengine.registry import init_default_scope
from safetensors.torch import save_file
from torch import nn

from _tiny import (DIMS, KINDS, SCOPES, Pictures, fill, model_cfg, same,
                   snapshot)
from vim_mm.models import build_model
from vim_mm.models.backbones import build_trunk
from vim_mm.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
TRUNKS = ROOT / 'configs' / '_base_' / 'trunks'
#: Configs, tokens before the patches, linear slots of two blocks.
NAMES = {
    'dinov3_vit-s16': (5, 4),
    'dinov3_vit-splus16': (5, 4),
    'dinov3_vit-b16': (5, 4),
    'dinov3_vit-l16': (5, 4),
    'dinov3_convnext-t': (0, 8),
    'dinov2-reg_vit-b14': (5, 4),
    'siglip2_vit-b16': (0, 4),
    'pe-core_vit-b16': (1, 4),
    'pe-spatial_vit-b16': (1, 4),
    'c-radio-v3_vit-b16': (8, 4),
    'c-radio-v4_so400m': (10, 4),
    'eupe_vit-b16': (5, 4),
    'tipsv2_vit-b14': (2, 4),
    'eva02_vit-b14': (1, 8),
}
ADAPTERS = ['ConvPass', 'BottleneckAdapter', 'LoRA', 'SideLadder']


def tiny(name: str) -> tuple:
    """The trunk's config made small, and its stride."""
    cfg = Config.fromfile(TRUNKS / f'{name}.py').trunk.to_dict()
    cfg.pop('init_cfg')
    if 'convnext' in name:
        return dict(cfg, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)), 32
    stride = int(cfg['model_name'].split('patch')[1][:2])
    sizes = dict(embed_dim=32, depth=2, num_heads=2, img_size=4 * stride)
    return dict(cfg, out_indices=(0, 1), **sizes), stride


@torch.no_grad()
@pytest.mark.parametrize('adapter', ADAPTERS)
@pytest.mark.parametrize('name', NAMES)
def test_modules_of_all_kinds(name: str, adapter: str) -> None:
    trunk, stride = tiny(name)
    prefix, linear = NAMES[name]
    backbone = MODELS.build(
        dict(
            type='vim_mm.ViMBackbone',
            trunk=trunk,
            new_module='a',
            adapter=dict(type=adapter),
            probe_size=4 * stride)).eval()
    drawn(backbone.trunk)
    fill(backbone.bank, .1)
    if adapter == 'LoRA':
        assert len(backbone.slots) == linear
    if 'convnext' not in name and adapter in ADAPTERS[:2]:
        found = {s.num_extra_tokens for s in backbone.slots.values()}
        assert found == {prefix}
    for rows, cols in ((4, 4), (2, 6)):
        x = torch.rand(2, 3, rows * stride, cols * stride)
        bare = [level.clone() for level in backbone.trunk(x)]
        levels = backbone(x)
        assert len(levels) > 1  # maps for FPNs and heads
        assert levels[-1].shape[-2:] == (rows, cols)
        assert [lv.shape for lv in levels] == [lv.shape for lv in bare]
        assert not torch.allclose(levels[-1], bare[-1], atol=1e-4)
        with backbone.only():
            assert all(map(torch.equal, backbone(x), bare))


@pytest.mark.parametrize('name', NAMES)
def test_the_published_file_loads_as_it_is(tmp_path: Path,
                                           name: str) -> None:
    trunk, _ = tiny(name)
    kwargs = {
        key: value
        for key, value in trunk.items()
        if key not in ('type', 'features_only', 'out_indices')
    }
    path = tmp_path / 'model.safetensors'
    save_file(drawn(timm.create_model(**kwargs)).state_dict(), path)
    theirs = timm.create_model(
        features_only=True,
        out_indices=trunk['out_indices'],
        pretrained=True,
        pretrained_cfg_overlay=dict(file=str(path), custom_load=False),
        **kwargs)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    ours = build_trunk(dict(trunk, init_cfg=init_cfg))
    assert same(snapshot(ours.timm_model), snapshot(theirs))


def model_of(kind: str, name: str) -> nn.Module:
    """All kinds of module beside one trunk, fused in front of an FPN."""
    trunk, stride = tiny(name)
    levels = len(trunk['out_indices'])
    # maps of a ViT have one stride: the second is made smaller
    convnext = 'convnext' in name
    scales, strides = ([1] * 4, [4, 8, 16, 32]) if convnext else (
        [1, .5], [stride, 2 * stride])
    pool = dict(type='mmpretrain.GlobalAveragePooling')
    fpn = dict(
        type='mmdet.FPN',
        in_channels=[DIMS] * levels,
        out_channels=DIMS,
        num_outs=levels)
    neck = dict(
        type='vim_mm.ViMFusionNeck',
        in_channels='auto',
        scales=scales,
        out_channels=DIMS,
        modules=ADAPTERS,
        inner_neck=pool if kind == 'cls' else fpn)
    cfg = model_cfg(kind, dict(trunk=trunk, probe_size=4 * stride), neck)
    if kind == 'det':
        bounds = [-1, *(4 * s for s in strides[1:]), 1e8]
        cfg.bbox_head.update(
            strides=strides, regress_ranges=tuple(zip(bounds, bounds[1:])))
    if kind == 'seg':
        cfg.data_preprocessor.update(size=None, size_divisor=stride)
    init_default_scope(SCOPES[kind])
    model = build_model(Config(dict(model=cfg, default_scope=SCOPES[kind])))
    for adapter in ADAPTERS:
        model.backbone.add(adapter, dict(type=adapter))
    return drawn_trunk(model)


def drawn_trunk(model: nn.Module) -> nn.Module:
    drawn(model.backbone.trunk)
    return model.train()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', NAMES)
def test_a_step_of_every_task(name: str, kind: str) -> None:
    """Every kind of module learns from images of two sizes."""
    model = model_of(kind, name)
    _, stride = tiny(name)
    before = snapshot(model.backbone.trunk)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=.1)
    for side in (4, 6):
        data = model.data_preprocessor(
            Pictures(kind, num=2, size=side * stride).batch(), True)
        losses = model(**data, mode='loss')
        total, _ = model.parse_losses(losses)
        assert torch.isfinite(total)
        optimizer.zero_grad()
        total.backward()
        for adapter in ADAPTERS:
            assert any(
                p.grad is not None and p.grad.any()
                for p in model.backbone.bank.members[adapter].parameters())
        optimizer.step()
    assert same(snapshot(model.backbone.trunk), before)
