# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A trunk of three blocks with experts, and its moe file."""

from pathlib import Path
from typing import Dict

import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn

from _tiny import DIMS, SIZE, fill, model_cfg, vit
from vim_mm.models.moe import moe_layers, save_moe
from vim_mm.registry import MODELS

TASKS = ['cls', 'seg']


class TokenNorm(nn.BatchNorm1d):
    """Batch norm of tokens, which has running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def moe_cfg(attention: bool = False, **kwargs) -> dict:
    """Config of a ViT whose last two blocks have experts.

    With ``attention`` the first and last have attention experts, the one
    between has others.
    """
    cfg = dict(
        type='vim_mm.to_moe',
        trunk=vit(out_indices=[2]),
        ffns=r'layers\.[12]\.ffn',
        num_experts=8,
        k=2,
        tasks=TASKS)
    if attention:
        experts = dict(num_experts=8, k=2)
        cfg = dict(
            vit(out_indices=[2]),
            type='vim_mm.MoEVisionTransformer',
            attn=experts,
            mlp=experts,
            tasks=TASKS)
    return dict(cfg, **kwargs)


def build_moe(seed: int = 0, norm: bool = False, **kwargs) -> nn.Module:
    """That trunk, with batch norms if asked for."""
    trunk = MODELS.build(moe_cfg(**kwargs))
    if norm:
        for block in trunk.layers:
            block.ln2 = TokenNorm(DIMS)
    fill(trunk, .2, seed)
    trunk.eval()
    return trunk


def some_usage(trunk: nn.Module, seed: int = 0) -> Dict[str, dict]:
    """Usage of which all differ, by layer and task."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: {
            task: torch.rand(router.num_experts, generator=generator)**4
            for task, router in layer.routers.items()
        }
        for name, layer in moe_layers(trunk).items()
    }


def write_moe(path: Path, usage: bool = True, **kwargs) -> nn.Module:
    """Write a moe file; return its trunk."""
    trunk = build_moe(**kwargs)
    save_moe(trunk, moe_cfg(**kwargs), path,
             some_usage(trunk) if usage else None)
    return trunk


def task_cfg(kind: str) -> ConfigDict:
    """An ordinary model of a kind that reads the trunk's map."""
    cfg = model_cfg(kind, {})
    cfg.pop('backbone')
    if kind == 'cls':
        cfg.neck = dict(type='mmpretrain.GlobalAveragePooling')
    if kind == 'det':
        cfg.neck = dict(
            type='mmdet.ChannelMapper',
            in_channels=[DIMS],
            out_channels=DIMS,
            num_outs=1)
    return cfg


def ordinary_cfg(kind: str, **backbone) -> ConfigDict:
    """An ordinary model of one library over a trunk of a moe file."""
    backbone = dict(dict(type='vim_mm.load_moe'), **backbone)
    return ConfigDict(task_cfg(kind), backbone=backbone)


def images(num: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, 3, SIZE, SIZE, generator=generator)
