# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Trunks whose MLPs become experts, and those whose cannot."""

from typing import Dict, List

import torch
from torch import nn

from _tiny import TRUNKS, vit
from vim_mm.models.moe import MoELayer

_SWIN = dict(
    embed_dims=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2), window_size=4)
_VIT = dict(
    embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
_CONVNEXT = dict(depths=[1, 1, 2, 1], channels=[8, 8, 16, 16])


def timm(name: str, **kwargs) -> dict:
    return dict(
        type='mmpretrain.TIMMBackbone',
        model_name=name,
        features_only=True,
        **kwargs)


#: trunks of several libraries, with maps of a 64 px image (56 for our ViT)
DENSE: Dict[str, dict] = dict(
    vit=vit(),
    vit_without_class_token=vit(with_cls_token=False),
    vit_with_layer_scale=vit(layer_scale_init_value=.5, drop_rate=.1),
    swin=TRUNKS['swin'],
    convnext=TRUNKS['convnext'],
    swin_v2=dict(
        type='mmpretrain.SwinTransformerV2',
        # with two heads its position network looks like an MLP of tokens
        arch=dict(
            embed_dims=8,
            depths=[1, 2, 1, 1],
            num_heads=[1, 2, 2, 4],
            extra_norm_every_n_blocks=0),
        img_size=64,
        window_size=4,
        pad_small_map=True,
        out_indices=(0, 1, 2, 3)),
    davit=dict(
        type='mmpretrain.DaViT',
        arch=dict(embed_dims=8, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2]),
        pad_small_map=True,
        out_indices=(0, 1, 2, 3)),
    beit=dict(
        type='mmpretrain.BEiTViT',
        arch=_VIT,
        img_size=64,
        patch_size=16,
        out_type='featmap'),
    mmdet_swin=dict(type='mmdet.SwinTransformer', **_SWIN),
    mmseg_swin=dict(type='mmseg.SwinTransformer', **_SWIN),
    mmseg_vit=dict(
        type='mmseg.VisionTransformer',
        img_size=64,
        patch_size=16,
        embed_dims=32,
        num_layers=2,
        num_heads=2,
        mlp_ratio=2),
    timm_vit=timm(
        'vit_tiny_patch16_224', img_size=64, embed_dim=32, depth=3,
        num_heads=2),
    timm_deit=timm(
        'deit_tiny_distilled_patch16_224', img_size=64, embed_dim=32, depth=3,
        num_heads=2),
    timm_dinov3=timm(
        'vit_small_patch16_dinov3', img_size=64, embed_dim=32, depth=3,
        num_heads=2),
    timm_swin=timm(
        'swin_tiny_patch4_window7_224', img_size=64, window_size=2,
        embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2)),
    timm_convnext=timm(
        'convnext_tiny', depths=(1, 1, 2, 1), dims=(8, 8, 16, 16)),
    timm_davit=timm(
        'davit_tiny', depths=(1, 1, 2, 1), embed_dims=(8, 16, 16, 16),
        num_heads=(1, 1, 2, 2)))

#: trunks without any, and what the message names
REFUSED: Dict[str, tuple] = dict(
    resnet=(TRUNKS['resnet'], 'ResNet has no MLP'),
    efficientnet=(TRUNKS['timm'], 'TIMMBackbone has no MLP'),
    convnext_of_convolutions=(dict(
        type='mmpretrain.ConvNeXt', arch=_CONVNEXT, linear_pw_conv=False),
                              'made of convolutions'),
    convnext_v2=(dict(
        type='mmpretrain.ConvNeXt',
        arch=_CONVNEXT,
        use_grn=True,
        layer_scale_init_value=0.), r"'stages\.0\.0\.grn' \(GRN\)"),
    mit=(dict(
        type='mmseg.MixVisionTransformer',
        embed_dims=8,
        num_heads=[1, 2, 4, 8],
        num_layers=[1, 1, 1, 1]), 'MixVisionTransformer has no MLP'),
    swiglu=(vit(layer_cfgs=dict(ffn_type='swiglu_fused')),
            'is gated, as SwiGLU'),
    eva02=(dict(
        type='mmpretrain.ViTEVA02', arch=_VIT, img_size=64, patch_size=16),
           'ViTEVA02 has no MLP.* is gated'),
    dinov3_plus=(timm(
        'vit_small_plus_patch16_dinov3', img_size=64, embed_dim=32, depth=3,
        num_heads=2), r"mlp\.fc1_g' \(Linear\) works on its hidden"))


def side_of(name: str) -> int:
    return 56 if name.startswith('vit') else 64


def layers_of(trunk: nn.Module) -> List[MoELayer]:
    return [m for m in trunk.modules() if isinstance(m, MoELayer)]


@torch.no_grad()
def make_uniform(trunk: nn.Module) -> None:
    """Let all routers find all experts equally good."""
    for layer in layers_of(trunk):
        for param in layer.routers.parameters():
            param.zero_()
