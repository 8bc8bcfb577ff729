# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Gradients of blocks that run again, and of those that do not."""

from copy import deepcopy
from typing import Callable, Dict, List, Optional

import torch
from torch import Tensor

from _tiny import TRUNKS, add_modules, fill, vit
from vim_mm.models.backbones import ViMBackbone
from vim_mm.models.recompute import blocks_of
from vim_mm.registry import MODELS

ALL: Dict[str, dict] = dict(
    TRUNKS,
    timm_vit=dict(
        type='mmpretrain.TIMMBackbone',
        model_name='vit_tiny_patch16_224',
        features_only=True,
        img_size=64,
        depth=2,
        embed_dim=32,
        num_heads=2,
        out_indices=(0, 1)))


def side_of(trunk: dict) -> int:
    return trunk['img_size'] if 'patch_size' in trunk else 64


def backbone_of(trunk: Optional[dict] = None,
                fusion: str = 'EnsMoE',
                **adapter) -> ViMBackbone:
    """Two tasks over a frozen and a learning module with dropout."""
    torch.manual_seed(0)
    cfg = dict(type='vim_mm.ViMBackbone', trunk=trunk or vit())
    backbone = MODELS.build(dict(cfg, probe_size=side_of(cfg['trunk'])))
    fill(backbone.trunk, 0.1)
    adapter.setdefault('drop_rate', 0.2 * (fusion != 'ParameterMerge'))
    add_modules(backbone, 'a', **adapter)
    add_modules(backbone, 'b', trainable=True, **adapter)
    backbone.set_fusion(dict(type=fusion, tasks=['x', 'y']))
    fill(backbone.fusion, 1.)
    backbone.learn_tasks(['x', 'y'])
    return backbone.train()


def pictures(height: int = 56, width: int = 56, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, height, width, generator=generator)


def loss_of(outputs: tuple) -> Tensor:
    return sum(level.float().square().mean() for level in outputs)


def gradients(backbone: ViMBackbone, run: Callable) -> List[Tensor]:
    """Of all that learns, after ``run(backbone)`` has called backward."""
    backbone.zero_grad()
    torch.manual_seed(3)
    run(backbone)
    params = [p for p in backbone.parameters() if p.requires_grad]
    assert params and any(p.grad.any() for p in params)
    return [p.grad.clone() for p in params]


def check(backbone: ViMBackbone, run: Callable) -> None:
    """The same gradients with and without, to the bit."""
    recomputing = deepcopy(backbone)
    recomputing.grad_checkpointing()
    calls = count_calls(recomputing)
    expected, got = gradients(backbone, run), gradients(recomputing, run)
    assert max(calls.values()) >= 2
    assert all(map(torch.equal, got, expected))


def count_calls(backbone: ViMBackbone) -> Dict[str, int]:
    """How often each block has run, filled in as it does."""
    calls: Dict[str, int] = {}
    for name in blocks_of(backbone.trunk, backbone.slots):
        block = backbone.trunk.get_submodule(name)
        inner = next(m for m in block.modules() if not list(m.children()))

        def count(*_, name: str = name) -> None:
            calls[name] = calls.get(name, 0) + 1

        inner.register_forward_hook(count)
    return calls


def one_pass(backbone: ViMBackbone) -> None:
    loss_of(backbone(pictures())).backward()
