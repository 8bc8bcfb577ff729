# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The models that rows are measured on: ViT-B/16 with ConvPass, h = 8.

Random weights; timings do not depend on them. Modules are filled, so that
nothing in them is zero.
"""

import vim_mm  # noqa: F401,I001 isort:skip

from typing import List, Optional, Sequence

import torch
from harness import Settings
from torch import nn

from vim_mm.models.adapters import ConvPass
from vim_mm.models.backbones import ViMBackbone
from vim_mm.models.backbones.trunk import build_trunk
from vim_mm.registry import MODELS

BASE = dict(
    embed_dims=768, num_layers=12, num_heads=12, feedforward_channels=3072)
TINY = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
RANK = 8


@MODELS.register_module()
class LonelyConvPass(ConvPass):
    """Is never evaluated together with another: the loop over modules."""

    @property
    def fold_key(self) -> tuple:
        return super().fold_key, id(self)


def vit(settings: Settings, depth: Optional[int] = None, **kwargs) -> dict:
    """Config of the trunk: ViT-B/16, or a tiny one; of ``depth`` blocks."""
    arch = dict(TINY if settings.quick else BASE)
    arch['num_layers'] = depth or arch['num_layers']
    return dict(
        dict(
            type='mmpretrain.VisionTransformer',
            arch=arch,
            img_size=settings.size,
            patch_size=16), **kwargs)


def trunk(settings: Settings, device: Optional[str] = None) -> nn.Module:
    """The frozen trunk alone, without slots."""
    return build_trunk(vit(settings)).to(device or settings.device)


def backbone(settings: Settings,
             cfg: Optional[dict] = None,
             **kwargs) -> ViMBackbone:
    """A ViMBackbone on the trunk, or on another config of it."""
    return MODELS.build(
        dict(
            type='vim_mm.ViMBackbone',
            trunk=cfg or vit(settings),
            probe_size=settings.size,
            **kwargs))


@torch.no_grad()
def fill(module: nn.Module, std: float = .02) -> None:
    """Give all parameters of a module random values."""
    for param in module.parameters():
        param.normal_(std=std)


def add_modules(model: ViMBackbone,
                names: Sequence[str],
                adapter: Optional[dict] = None) -> None:
    """Add frozen, filled modules in all slots."""
    for name in names:
        model.add(name, adapter or dict(type='ConvPass'))
        fill(model.bank.members[name].requires_grad_(False))
    model.train(model.training)


def bank(settings: Settings,
         num: int,
         device: Optional[str] = None,
         tasks: Optional[Sequence[str]] = None,
         adapter: Optional[dict] = None,
         learn: bool = False,
         depth: Optional[int] = None) -> ViMBackbone:
    """A backbone whose Ens-MoE weighs ``num`` frozen modules.

    Args:
        settings (Settings): Size of the trunk.
        num (int): Number of modules.
        device (str, optional): Where it runs; that of the settings if None.
        tasks (Sequence[str], optional): Tasks of the fusion, over all modules
            each. One without a name when None.
        adapter (dict, optional): Config of the adapters. Defaults to
            ConvPass of h = 8.
        learn (bool): Whether the gates learn; else nothing does, and the
            model is in eval mode. Defaults to False.
        depth (int, optional): Blocks of the trunk; all of them when None.
    """
    model = backbone(settings, vit(settings, depth))
    names: List[str] = [f'm{i}' for i in range(num)]
    add_modules(model, names, adapter)
    fusion = dict(type='EnsMoE')
    if tasks:
        fusion.update(tasks=list(tasks))
    model.set_fusion(fusion)
    fill(model.fusion, 1.)
    model.to(device or settings.device)
    if learn:
        return model.train()
    return model.requires_grad_(False).eval()
