# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Activation checkpointing of any trunk's blocks."""

from typing import Iterable, Iterator, List, Tuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_LISTS = (nn.ModuleList, nn.Sequential)


class Recompute:
    """The forward of a block that runs again when gradients are computed.

    Between the passes only the block's input is kept. A plain object, so that
    a deep copy of the trunk runs its own blocks.

    Args:
        block (nn.Module): The block.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.enabled = True

    def __call__(self, *args, **kwargs) -> object:
        """The block's output."""
        run = type(self.block).forward
        if not (self.enabled and torch.is_grad_enabled()):
            return run(self.block, *args, **kwargs)
        return checkpoint(
            run, self.block, *args, use_reentrant=False, **kwargs)


def blocks_of(trunk: nn.Module, slots: Iterable[str]) -> List[str]:
    """Names of the trunk's repeated blocks.

    A block is an item of a list of modules that is no list itself and holds
    none, as a stage does. Those of the classes that slots lie in, or are,
    count: what comes behind a slot keeps its inputs too.

    Args:
        trunk (nn.Module): The trunk.
        slots (Iterable[str]): Names of its slots.
    """
    blocks = dict(_blocks(trunk))
    kinds = {
        type(block)
        for name, block in blocks.items()
        if any(f'{slot}.'.startswith(f'{name}.') for slot in slots)
    }
    return [name for name, block in blocks.items() if type(block) in kinds]


def _blocks(module: nn.Module,
            prefix: str = '') -> Iterator[Tuple[str, nn.Module]]:
    for name, part in module.named_children():
        is_list = isinstance(part, _LISTS)
        if isinstance(module, _LISTS) and not is_list and not any(
                isinstance(inner, nn.ModuleList) for inner in part.children()):
            yield f'{prefix}{name}', part
        else:
            yield from _blocks(part, f'{prefix}{name}.')


def set_recompute(trunk: nn.Module, slots: Iterable[str],
                  enable: bool) -> bool:
    """Checkpoint the blocks of a trunk, or stop doing so.

    Args:
        trunk (nn.Module): The trunk.
        slots (Iterable[str]): Names of its slots.
        enable (bool): Whether to.

    Returns:
        bool: Whether there are any blocks around its slots.
    """
    names = blocks_of(trunk, slots)
    for name in names:
        block = trunk.get_submodule(name)
        before = block.__dict__.get('forward')
        if isinstance(before, Recompute):
            before.enabled = enable
        elif enable and before is None:
            block.forward = Recompute(block)
    return bool(names)


def stop_checkpoints(trunk: nn.Module) -> bool:
    """Switch off the checkpoints that blocks of mm* backbones make.

    Those are reentrant: beside a frozen trunk, whose input needs no gradient,
    nothing would learn through them.

    Returns:
        bool: Whether there were any.
    """
    blocks = [m for m in trunk.modules() if getattr(m, 'with_cp', False)]
    for block in blocks:
        block.with_cp = False
    return bool(blocks)
