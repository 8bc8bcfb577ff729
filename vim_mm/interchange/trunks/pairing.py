# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Tensors of twins: networks that differ in the names of their parts alone."""

from .family import StateDict
from .sources import ConversionError

__all__ = ['pair_by_order']


def pair_by_order(source: StateDict, target: StateDict) -> StateDict:
    """Give the tensors of one network the names of its twin.

    Equal leaf names and shapes guard every pair.

    Args:
        source (dict[str, Tensor]): Tensors to keep.
        target (dict[str, Tensor]): Tensors of the twin, in the same order;
            only names and shapes are read.

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
    for (key, tensor), (name, twin) in zip(source.items(), target.items()):
        same_leaf = key.rpartition('.')[2] == name.rpartition('.')[2]
        if not same_leaf or tensor.shape != twin.shape:
            raise ConversionError(
                f"tensor '{key}' of shape {tuple(tensor.shape)} stands where "
                f"'{name}' of shape {tuple(twin.shape)} belongs: this is "
                'another network')
        paired[name] = tensor
    return paired
