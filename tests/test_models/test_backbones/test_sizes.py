# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A trunk with modules takes the sizes of images that it takes bare."""

import pytest
import torch

from _tiny import fill, vit
from vim_mm.registry import MODELS

SWIN = dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2])
VIT = dict(embed_dims=32, num_layers=2, num_heads=2)
PADDING = {
    'mmpretrain.VisionTransformer':
    vit(img_size=64, patch_size=16),
    'mmpretrain.ViTEVA02':
    dict(
        arch=dict(VIT, feedforward_channels=64),
        img_size=64,
        patch_size=16,
        out_type='featmap'),
    'mmpretrain.SwinTransformer':
    dict(arch=SWIN, img_size=64, window_size=4, pad_small_map=True),
    'mmpretrain.SwinTransformerV2':
    dict(
        arch=dict(SWIN, extra_norm_every_n_blocks=0),
        img_size=64,
        window_size=[4, 4, 4, 2],
        pad_small_map=True),
    'mmdet.SwinTransformer':
    dict(SWIN, window_size=4),
    'mmseg.SwinTransformer':
    dict(SWIN, window_size=4),
    'mmseg.VisionTransformer':
    dict(VIT, img_size=64, out_indices=(0, 1)),
    'mmpretrain.TIMMBackbone':
    dict(
        model_name='vit_tiny_patch16_224',
        features_only=True,
        embed_dim=32,
        depth=3,
        num_heads=2,
        dynamic_img_size=True,
        dynamic_img_pad=True),
}


def build(trunk: dict, adapter: str = 'ConvPass', **kwargs):
    backbone = MODELS.build(
        dict(
            type='vim_mm.ViMBackbone',
            trunk=trunk,
            new_module='a',
            adapter=dict(type=adapter),
            **kwargs)).eval()
    fill(backbone.bank, .1)
    return backbone


@torch.no_grad()
@pytest.mark.parametrize('name', PADDING)
@pytest.mark.parametrize('adapter',
                         ['ConvPass', 'BottleneckAdapter', 'SideLadder'])
def test_trunks_that_pad_by_themselves(name: str, adapter: str) -> None:
    backbone = build(dict(PADDING[name], type=name), adapter, probe_size=64)
    for height, width in ((62, 66), (63, 63), (64, 80)):
        x = torch.rand(2, 3, height, width)
        bare = backbone.trunk(x)
        bare = [bare] if isinstance(bare, torch.Tensor) else bare
        with backbone.only():
            for ours, theirs in zip(backbone(x), bare):
                assert torch.equal(ours, theirs)
        for ours, theirs in zip(backbone(x), bare):
            assert ours.shape == theirs.shape
            assert not torch.allclose(ours, theirs, atol=1e-4)


ATTENTIONS = r'.*\.(attn|spatial_attn|channel_attn)'
PYRAMID = dict(
    embed_dims=[8] * 4,
    depths=[2] * 4,
    num_heads=[1] * 4,
    patch_sizes=[4, 2, 2, 2],
    strides=[4, 2, 2, 2],
    mlp_ratios=[2] * 4,
    sr_ratios=[8, 4, 2, 1])
#: Trunks that take any size in ways of their own, and patterns of slots.
OVERLAPPING = dict(
    pvt_v2=(dict(model_name='pvt_v2_b0', depths=(1, 1, 1, 1)), None),
    twins=(dict(
        model_name='twins_pcpvt_small',
        depths=(1, 1, 1, 1),
        embed_dims=(16, 16, 16, 16),
        num_heads=(1, 1, 1, 1)), None),
    xcit=(dict(
        model_name='xcit_nano_12_p16_224',
        img_size=64,
        out_indices=(0, 1),
        embed_dim=32,
        depth=2,
        num_heads=2), None),
    mm_twins=(dict(
        type='mmpretrain.PCPVT', arch=PYRAMID, out_indices=(0, 3)),
              ATTENTIONS))


@torch.no_grad()
@pytest.mark.parametrize('name', OVERLAPPING)
def test_trunks_that_take_any_size_somehow(name: str) -> None:
    cfg, slots = OVERLAPPING[name]
    trunk = dict(cfg)
    if 'model_name' in cfg:
        trunk.update(type='mmpretrain.TIMMBackbone', features_only=True)
    backbone = build(trunk, slots=slots, probe_size=64)
    for height, width in ((62, 66), (65, 71)):
        x = torch.rand(1, 3, height, width)
        bare = backbone.trunk(x)
        with backbone.only():
            assert all(map(torch.equal, backbone(x), bare))
        assert not torch.allclose(backbone(x)[-1], bare[-1], atol=1e-4)


#: Trunks of one size that they do not keep, and how it can be known.
FIXED = dict(
    levit=dict(type='mmpretrain.LeViT', arch='128s', img_size=64),
    mixmim=dict(
        type='mmpretrain.MixMIMTransformer',
        arch=dict(embed_dims=8, depths=[1] * 4, num_heads=[1] * 4),
        img_size=64,
        window_size=[4, 4, 4, 2]),
    # as its weights were published
    maxvit=dict(
        type='mmpretrain.TIMMBackbone',
        model_name='maxvit_rmlp_pico_rw_256',
        features_only=True))


@pytest.mark.parametrize('name', FIXED)
def test_trunks_that_do_not_keep_their_size(name: str) -> None:
    slots = None if name == 'maxvit' else r'stages\.0\.0|.*\.ffn'
    backbone = build(FIXED[name], 'SideLadder', slots=slots)
    side = 256 if name == 'maxvit' else 64
    assert len(backbone(torch.rand(1, 3, side, side))) == len(
        backbone.out_channels)


def test_others_say_what_to_do() -> None:
    trunk = dict(PADDING['mmpretrain.TIMMBackbone'], dynamic_img_pad=False)
    backbone = build(
        dict(trunk, type='mmpretrain.TIMMBackbone'), probe_size=64)
    with pytest.raises(ValueError, match='62x66 px is not divisible.*16'):
        backbone(torch.rand(1, 3, 62, 66))


RECTANGLES = {
    'vit_tiny_patch16_224': dict(embed_dim=32, depth=3, num_heads=2),
    'vit_base_patch16_siglip_224': dict(embed_dim=32, depth=3, num_heads=2),
    'beit_base_patch16_224': dict(embed_dim=32, depth=3, num_heads=2),
}


@torch.no_grad()
@pytest.mark.parametrize('adapter', ['ConvPass', 'LoRA', 'SideLadder'])
@pytest.mark.parametrize('name', RECTANGLES)
def test_rectangular_trunks_of_one_size(name: str, adapter: str) -> None:
    """Found by an image of their own size, whatever ``probe_size`` says."""
    trunk = dict(
        type='mmpretrain.TIMMBackbone',
        model_name=name,
        features_only=True,
        img_size=(128, 64),
        **RECTANGLES[name])
    for kwargs in ({}, dict(probe_size=(128, 64))):
        backbone = build(trunk, adapter, **kwargs)
        strides = {s.stride for s in backbone.slots.values() if not s.is_map}
        assert strides <= {16}
        levels = backbone(torch.rand(2, 3, 128, 64))
        assert {level.shape[-2:] for level in levels} == {(8, 4)}
        assert backbone.out_channels == [32, 32, 32]
