# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A trunk of three blocks with experts, and its moe file."""

from pathlib import Path
from typing import Dict, Sequence

import torch
from torch import Tensor, nn

from _tiny import DIMS, SIZE, fill, vit
from vim_mm.models.moe import MoEMlp, moe_layers, save_moe
from vim_mm.registry import MODELS

TASKS = ['cls', 'seg']


@MODELS.register_module()
def tiny_moe(num_experts: int = 8,
             k: int = 2,
             tasks: Sequence[str] = TASKS,
             router: str = 'mlp',
             norm: bool = False) -> nn.Module:
    """A ViT whose last two blocks have experts, one at a time a BN before."""
    trunk = MODELS.build(vit(out_indices=[2]))
    for block in trunk.layers[1:]:
        moe = MoEMlp(DIMS, 16, num_experts, k, tasks, router)
        block.ffn.layers[0] = nn.Sequential(moe, nn.Identity())
        block.ffn.layers[1] = nn.Identity()
        if norm:
            block.ln2 = TokenNorm(DIMS)
    return trunk


class TokenNorm(nn.BatchNorm1d):
    """Batch norm of tokens, which has running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


CONFIG = dict(type='vim_mm.tiny_moe')


def build_moe(seed: int = 0, **kwargs) -> nn.Module:
    trunk = MODELS.build(dict(CONFIG, **kwargs))
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
    save_moe(trunk, dict(CONFIG, **kwargs), path,
             some_usage(trunk) if usage else None)
    return trunk


def images(num: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, 3, SIZE, SIZE, generator=generator)
