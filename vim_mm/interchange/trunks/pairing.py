# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Tensors of twins: networks that differ in the names of their parts alone."""

from collections.abc import Callable, Mapping
from functools import cache

from torch import Size, nn

from vim_mm.utils.meta import shapes, without_memory
from .family import StateDict
from .sources import ConversionError

__all__ = ['pair_by_order', 'shapes_of']


@cache
def shapes_of(build: Callable[[], nn.Module]) -> Mapping[str, Size]:
    """Names and shapes of a network's tensors, in order.

    Each family is asked about each file, so a network is built once.

    Args:
        build (Callable): Builds it, here without memory.

    Returns:
        Mapping[str, Size]: They, of which no other copy is made.
    """
    with without_memory():
        return shapes(build().state_dict())


def pair_by_order(source: StateDict, target: Mapping[str, Size]) -> StateDict:
    """Give the tensors of one network the names of its twin.

    Equal leaf names and shapes guard every pair.

    Args:
        source (dict[str, Tensor]): Tensors to keep.
        target (Mapping[str, Size]): Names and shapes of the twin, in the same
            order.

    Returns:
        dict[str, Tensor]: The tensors of ``source`` under ``target``'s names.

    Raises:
        ConversionError: If numbers, leaf names or shapes differ.
    """
    if len(source) != len(target):
        raise ConversionError(
            f'{len(source)} tensors where the network has {len(target)}: '
            'this is another network')
    paired = {}
    for (key, tensor), (name, shape) in zip(source.items(), target.items()):
        same_leaf = key.rpartition('.')[2] == name.rpartition('.')[2]
        if not same_leaf or tensor.shape != shape:
            raise ConversionError(
                f"tensor '{key}' of shape {tuple(tensor.shape)} stands where "
                f"'{name}' of shape {tuple(shape)} belongs: this is "
                'another network')
        paired[name] = tensor
    return paired
