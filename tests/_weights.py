# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Networks with drawn weights, and configs that name their files."""

from pathlib import Path
from typing import Union

import torch
from torch import nn

from _tiny import fill
from vim_mm.registry import MODELS


def with_file(cfg: dict, path: Path, **kwargs) -> dict:
    return dict(
        cfg, init_cfg=dict(type='Pretrained', checkpoint=str(path), **kwargs))


def drawn(cfg: Union[dict, nn.Module], seed: int = 0) -> nn.Module:
    """The library's own model, every number of it drawn."""
    model = MODELS.build(cfg) if isinstance(cfg, dict) else cfg
    fill(model, 0.1, seed)
    for part in model.modules():  # statistics of norms are learned, too
        if getattr(part, 'running_var', None) is not None:
            nn.init.uniform_(part.running_mean)
            nn.init.uniform_(part.running_var, .5, 2.)
    # torch's attention rounds otherwise where its weights learn
    model.requires_grad_(False)
    model.eval()
    return model


@torch.no_grad()
def outputs(model: nn.Module, size: int = 64) -> list:
    found = model(torch.rand(2, 3, size, size, generator=torch.Generator()))
    return [found] if isinstance(found, torch.Tensor) else list(found)
