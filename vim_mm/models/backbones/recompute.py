# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Activation checkpointing of any trunk's blocks."""

from typing import Iterable, List

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
    """Names of the repeated blocks that slots lie in, or are.

    A block is an item of a list of modules that is no list itself and holds
    none, as a stage does.

    Args:
        trunk (nn.Module): The trunk.
        slots (Iterable[str]): Names of its slots.
    """
    modules = dict(trunk.named_modules())
    found: List[str] = []
    for slot in slots:
        parts = slot.split('.')
        for end in range(2, len(parts) + 1):
            name, owner = '.'.join(parts[:end]), '.'.join(parts[:end - 1])
            if name not in modules or not isinstance(modules[owner], _LISTS):
                continue
            block = modules[name]
            if isinstance(block, _LISTS) or any(
                    isinstance(part, nn.ModuleList)
                    for part in block.children()):
                continue
            if name not in found:
                found.append(name)
            break
    return found


def set_recompute(trunk: nn.Module, slots: Iterable[str],
                  enable: bool) -> None:
    """Checkpoint the blocks of a trunk, or stop doing so.

    Args:
        trunk (nn.Module): The trunk.
        slots (Iterable[str]): Names of its slots.
        enable (bool): Whether to.

    Raises:
        ValueError: If no slot lies in a repeated block.
    """
    names = blocks_of(trunk, slots)
    if enable and not names:
        raise ValueError(
            f'{type(trunk).__name__} has no repeated blocks around its slots '
            'to run again; leave out `model.backbone.grad_checkpointing`.')
    for name in names:
        block = trunk.get_submodule(name)
        before = block.__dict__.get('forward')
        if enable and before is None:
            block.forward = Recompute(block)
        elif isinstance(before, Recompute):
            before.enabled = enable
