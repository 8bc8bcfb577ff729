# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A trunk of two layers of experts on tokens, and what reads its routers."""

from typing import Dict, List, Optional

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vim_mm.models.moe import MoEMlp
from vim_mm.models.multitask import MutualInformation
from vim_mm.models.tasks import select_task
from vim_mm.registry import MODELS

TASKS, DIMS = ['a', 'b', 'c'], 8


class Trunk(nn.Module):
    """The layers `first`, with the router asked for, and `blocks.0`."""

    def __init__(self,
                 tasks: Optional[List[str]],
                 num_experts: int = 6,
                 k: int = 2,
                 router: str = 'mlp',
                 reentrant: Optional[bool] = None) -> None:
        super().__init__()
        self.first = MoEMlp(DIMS, 4, num_experts, k, tasks, router=router)
        self.between = nn.LayerNorm(DIMS)
        self.blocks = nn.ModuleList(
            [MoEMlp(DIMS, 4, num_experts, k, tasks, router='linear')])
        self.reentrant = reentrant

    @property
    def layers(self) -> List[MoEMlp]:
        return [self.first, self.blocks[0]]

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(x + self.first(x))
        if self.reentrant is None:
            return x + self.blocks[0](x)
        return x + checkpoint(self.blocks[0], x, use_reentrant=self.reentrant)


def trunk(tasks: Optional[List[str]] = TASKS,
          std: float = .5,
          **kwargs) -> Trunk:
    torch.manual_seed(0)
    model = Trunk(tasks, **kwargs)
    for param in model.parameters():
        nn.init.normal_(param, std=std)
    return model


def bound(model: nn.Module, tasks: List[str] = TASKS,
          **kwargs) -> MutualInformation:
    routing = MODELS.build(
        dict(dict(type='vim_mm.MutualInformation', start=0), **kwargs))
    routing.bind(model, tasks)
    return routing


def run(model: nn.Module, routing: MutualInformation, task: str,
        x: Tensor) -> Dict[str, Tensor]:
    """One pass of a task."""
    select_task(model, task)
    with routing.record(model) as seen:
        model(x)
    return routing.loss(seen, task)


def tokens(seed: int, num: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, DIMS, generator=generator)
