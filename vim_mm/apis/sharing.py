# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Several models that hold equal tensors once."""

from typing import Dict, Iterator, Sequence, Tuple

import torch
from torch import Tensor, nn

from vim_mm.models.backbones import ViMBackbone
from vim_mm.zoo import same_trunk


def tensors(model: nn.Module) -> Iterator[Tuple[dict, str, str, Tensor]]:
    """Where each parameter and buffer is held, key, full name and value."""
    for prefix, part in model.named_modules():
        for held in (part._parameters, part._buffers):
            for key, value in list(held.items()):
                if value is not None:
                    yield held, key, f'{prefix}.{key}'.lstrip('.'), value


def equal(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are bit-identical, wherever they are."""
    if first is second:
        return True
    return (first.dtype == second.dtype and first.shape == second.shape
            and torch.equal(first.to(second.device), second))


def share(model: nn.Module, other: nn.Module) -> None:
    """Let a model hold the tensors of another where both are equal."""
    theirs = {name: value for _, _, name, value in tensors(other)}
    for held, key, name, value in tensors(model):
        kept = theirs.get(name)
        if kept is not None and equal(value, kept):
            held[key] = kept


def check_trunk(backbone: ViMBackbone, served: ViMBackbone, task: str) -> None:
    """Refuse a trunk with other weights than one that is served already.

    Only what depends on the image's size may differ: a position embedding
    of another shape, outside all slots, stays the task's own.

    Args:
        backbone (ViMBackbone): The new task's.
        served (ViMBackbone): The one to compare with.
        task (str): The task it belongs to.

    Raises:
        ValueError: If a tensor differs; it is named.
    """
    trunk, other = backbone.trunk, served.trunk
    if type(trunk) is not type(other):
        raise ValueError(f'Its trunk is a {type(trunk).__name__}, that of '
                         f"'{task}' a {type(other).__name__}; serve it from "
                         'an inferencer of its own.')
    theirs: Dict[str, Tensor] = {n: v for _, _, n, v in tensors(other)}
    inside = tuple(f'{slot}.' for slot in backbone.slots)
    slots = backbone.own_slots()
    same = slots and slots == served.own_slots() and same_trunk(
        trunk, other, slots)
    hashed = tuple(f'{slot}.' for slot in slots) if same else ()
    for _, _, name, value in tensors(trunk):
        kept = theirs.get(name, value)
        if name.startswith(hashed) and kept.dtype == value.dtype:
            continue
        resized = kept.shape != value.shape and not name.startswith(inside)
        if not resized and not equal(value, kept):
            raise ValueError(
                f"Its trunk has other weights than that of '{task}' "
                f"('{name}' differs); point both configs' "
                '`model.backbone.trunk.init_cfg.checkpoint` at one file, or '
                'serve it from an inferencer of its own.')


def memory(models: Sequence[nn.Module]) -> int:
    """Bytes of all distinct tensors of some models."""
    sizes = {
        value.data_ptr(): value.nbytes
        for model in models
        for _, _, _, value in tensors(model)
    }
    return sum(sizes.values())
