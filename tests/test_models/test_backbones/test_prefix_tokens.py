# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Class and register tokens are those of the trunk, everywhere."""

import pytest
import torch

from _tiny import vit
from vim_mm.engine.model_parts import extra_tokens
from vim_mm.models.backbones.prefix_tokens import token_grid
from vim_mm.models.layouts import pool_tokens
from vim_mm.models.necks import StandardizedPooling
from vim_mm.registry import MODELS

SMALL = dict(embed_dim=32, depth=2, num_heads=2)


def timm_trunk(name: str, **kwargs) -> dict:
    return dict(
        dict(
            type='mmpretrain.TIMMBackbone',
            model_name=name,
            img_size=64,
            **SMALL), **kwargs)


#: Trunks that return tokens, and how many of these come before the patches.
#: 64 px are 4 x 4 patches, and with eight tokens as many as 4.9 x 4.9.
TRUNKS = dict(
    siglip=(timm_trunk('vit_base_patch16_siglip_224'), 0),
    vit=(timm_trunk('vit_tiny_patch16_224'), 1),
    eva02=(timm_trunk('eva02_tiny_patch14_224', img_size=56), 1),
    dinov2_reg=(timm_trunk('vit_small_patch14_reg4_dinov2', img_size=56), 5),
    dinov3=(timm_trunk('vit_small_patch16_dinov3'), 5),
    two_by_two=(timm_trunk('vit_small_patch16_dinov3', img_size=32), 5),
    radio=(timm_trunk('vit_tiny_patch16_224', reg_tokens=7), 8),
    three_by_three=(timm_trunk(
        'vit_tiny_patch16_224', reg_tokens=6, img_size=48), 7),
    rows=(timm_trunk('vit_tiny_patch16_224', img_size=(64, 32)), 1),
    mm=(vit(out_type='raw', img_size=64, patch_size=16), 1),
    mm_no_cls=(vit(
        out_type='raw', with_cls_token=False, img_size=64, patch_size=16), 0),
    mm_distilled=(dict(
        vit(out_type='raw', img_size=64, patch_size=16),
        type='mmpretrain.DistilledVisionTransformer'), 2))


def size_of(cfg: dict) -> tuple:
    size = cfg['img_size']
    return size if isinstance(size, tuple) else (size, size)


@pytest.mark.parametrize('name', TRUNKS)
def test_of_the_trunk_everywhere(name: str) -> None:
    cfg, number = TRUNKS[name]
    model = MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(
                type='vim_mm.ViMBackbone',
                trunk=cfg,
                new_module='a',
                probe_size=size_of(cfg)),
            neck=dict(type='vim_mm.StandardizedPooling', in_channels='auto'),
            head=dict(
                type='mmpretrain.LinearClsHead',
                num_classes=2,
                in_channels='auto')))
    backbone = model.backbone
    assert backbone.num_extra_tokens == number
    assert {s.num_extra_tokens for s in backbone.slots.values()} == {number}
    assert model.neck.num_extra_tokens == extra_tokens(model) == number
    height, width = size_of(cfg)
    picture = torch.rand(2, 3, height, width)
    levels = backbone(picture)
    for level in levels:
        patches = level[:, number:]
        stride, = {s.stride for s in backbone.slots.values()}
        assert patches.shape[1] == height * width // stride**2
    pooled, = model.neck(levels)
    right = [
        torch.cat([
            level[:, :number].flatten(1), level[:, number:].mean(1),
            level[:, number:].amax(1)
        ], 1) for level in levels
    ]
    torch.testing.assert_close(pooled, torch.cat(right, 1))
    assert model.head(model.neck(levels)).shape == (2, 2)


def test_the_users_number_counts() -> None:
    neck = dict(
        type='vim_mm.StandardizedPooling',
        in_channels='auto',
        num_extra_tokens=0)
    cfg, _ = TRUNKS['mm']
    model = MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(type='vim_mm.ViMBackbone', trunk=cfg, probe_size=64),
            neck=neck,
            head=dict(
                type='mmpretrain.LinearClsHead',
                num_classes=2,
                in_channels='auto')))
    assert model.neck.num_extra_tokens == 0
    assert extra_tokens(model, 0) == 0


@pytest.mark.parametrize('number', [0, 1, 5, 8])
def test_a_neck_alone_has_room_for_them(number: int) -> None:
    levels = [torch.randn(2, number + 16, 6), torch.randn(2, number + 4, 8)]
    width = (number + 2) * 14
    neck = StandardizedPooling(in_channels=width)
    assert torch.equal(neck(levels)[0], pool_tokens(levels, number))


@pytest.mark.parametrize('length, picture, declared, right', [
    (17, (64, 64), 1, (16, 1)),
    (17, (64, 64), None, (16, 1)),
    (9, (32, 32), 5, (16, 5)),
    (16, (48, 48), 7, (16, 7)),
    (16, (64, 64), 3, (16, 0)),
    (129, (256, 128), 1, (16, 1)),
    (128, (128, 256), None, (16, 0)),
    (10, (56, 56), None, None),
])
def test_grids(length: int, picture: tuple, declared: int,
               right: tuple) -> None:
    assert token_grid(length, picture, declared) == right
