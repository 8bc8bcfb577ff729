# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a mixture of experts costs: to train, to store and to run."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Dict, Iterable, Optional

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..tasks import select_task
from .moe_mlp import moe_layers


@dataclass(frozen=True)
class Cost:
    """Of a part of a model.

    Attributes:
        trained (int): Parameters that learn.
        stored (int): All parameters.
        active (int): Those that one task's pass applies to a token.
        macs (int): Multiply-adds of the pass of one image.
    """
    trained: int
    stored: int
    active: int
    macs: int

    def __add__(self, other: 'Cost') -> 'Cost':
        return Cost(self.trained + other.trained, self.stored + other.stored,
                    self.active + other.active, self.macs + other.macs)


def count_moe(trunk: nn.Module,
              size: int = 224,
              task: Optional[str] = None) -> Dict[str, Cost]:
    """Count parameters and multiply-adds of a trunk, with or without experts.

    Of a router's own task all parameters are active, of the experts ``k`` per
    layer. Multiply-adds are those of matrix products and convolutions.

    Args:
        trunk (nn.Module): The trunk; it is left in eval mode.
        size (int): Side of the image in pixels. Defaults to 224.
        task (str, optional): The task that runs; as it is selected when None.

    Returns:
        dict[str, Cost]: Of the ``'routers'``, ``'experts'``, ``'shared'``
        parts, and in ``'total'``.
    """
    if task is not None:
        select_task(trunk, task)
    layers = moe_layers(trunk)
    routers = experts = Cost(0, 0, 0, 0)
    tokens, all_macs = _run(trunk, size)
    inside = set()
    for name, layer in layers.items():
        num, k = len(layer.experts), layer.k
        macs = _macs(layer.router, 2) * tokens[name]
        stored = _count(layer.routers.parameters())
        routers += Cost(
            _count(layer.routers.parameters(), True), stored,
            _count(layer.router.parameters()), macs)
        stored = _count(layer.experts.parameters())
        experts += Cost(
            _count(layer.experts.parameters(), True), stored,
            stored * k // num,
            _macs(layer.experts, 3) * k * tokens[name] // num)
        inside |= set(map(id, layer.routers.parameters()))
        inside |= set(map(id, layer.experts.parameters()))
    rest = [param for param in trunk.parameters() if id(param) not in inside]
    stored = _count(rest)
    shared = Cost(_count(rest, True), stored, stored, all_macs - routers.macs)
    return dict(
        routers=routers,
        experts=experts,
        shared=shared,
        total=routers + experts + shared)


def count_rest(model: nn.Module, trunk: nn.Module) -> Cost:
    """Parameters of a whole model beside its trunk; all of them are active.

    Args:
        model (nn.Module): The model.
        trunk (nn.Module): Its trunk.
    """
    inside = set(map(id, trunk.parameters()))
    rest = [param for param in model.parameters() if id(param) not in inside]
    return Cost(_count(rest, True), _count(rest), _count(rest), 0)


def _count(params: Iterable[Tensor], learning: bool = False) -> int:
    return sum(p.numel() for p in params if p.requires_grad or not learning)


def _macs(part: nn.Module, dims: int) -> int:
    """Multiply-adds per row of the matrices of a part."""
    return sum(p.numel() for p in part.parameters() if p.dim() == dims)


@torch.no_grad()
def _run(trunk: nn.Module, size: int) -> tuple:
    """Tokens of each layer of experts, and multiply-adds but experts'."""
    layers = moe_layers(trunk)
    tokens = dict.fromkeys(layers, 0)
    image = torch.zeros(1, 3, size, size).to(next(trunk.parameters()))
    trunk.eval()
    with ExitStack() as stack:
        for name, layer in layers.items():

            def note(_: nn.Module, args: tuple, p: Tensor, name=name) -> None:
                tokens[name] += len(p)

            handle = layer.router.register_forward_hook(note)
            stack.callback(handle.remove)
            stack.callback(setattr, layer.experts, 'dispatch',
                           layer.experts.dispatch)
            # products of each expert's rows, of which the counter knows none
            layer.experts.dispatch = 'loop'
        # nor does it know fused attention
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        counter = stack.enter_context(FlopCounterMode(display=False))
        trunk(image)
    return tokens, counter.get_total_flops() // 2
