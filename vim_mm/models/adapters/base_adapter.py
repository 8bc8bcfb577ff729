# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from abc import ABCMeta, abstractmethod
from typing import Hashable, Sequence, Tuple

import torch
from mmengine.model import BaseModule
from torch import Tensor

Grid = Tuple[int, int]


class BaseAdapter(BaseModule, metaclass=ABCMeta):
    """The small net that sits in one slot of a trunk.

    An adapter maps the tokens a slot reads to what is added to the slot's
    output. A fresh adapter returns exact zeros, so that plugging it in leaves
    the trunk unchanged.

    Subclasses register themselves in ``MODELS`` and are built with ``dims``,
    the width of the slot, as a keyword argument.
    """

    @abstractmethod
    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Map tokens to the delta of this adapter alone.

        Args:
            x (Tensor): Tokens of shape (B, E + H * W, dims): E extra tokens
                (class, registers) first, then the patches row by row.
            grid (tuple[int, int]): H and W, in patches.

        Returns:
            Tensor: The delta, of the same shape as ``x``.
        """

    @property
    def wide_key(self) -> Hashable:
        """Adapters with equal keys can be evaluated as one wide adapter."""
        return type(self)

    @classmethod
    def wide(cls, adapters: Sequence['BaseAdapter'], gates: Tensor, x: Tensor,
             grid: Grid) -> Tensor:
        """Gated sum of several adapters over the same tokens.

        This plain loop is the reference; kinds with a batched form override
        it and are tested against it.

        Args:
            adapters (Sequence[BaseAdapter]): K adapters of equal
                :attr:`wide_key`.
            gates (Tensor): Weights of shape (K, ).
            x (Tensor): Tokens of shape (B, E + H * W, dims).
            grid (tuple[int, int]): H and W, in patches.

        Returns:
            Tensor: ``sum_k gates[k] * adapters[k](x)``.
        """
        deltas = [adapter(x, grid) for adapter in adapters]
        return torch.einsum('k,k...->...', gates, torch.stack(deltas))

    @classmethod
    def merged(cls, adapters: Sequence['BaseAdapter'], gates: Tensor,
               x: Tensor, grid: Grid) -> Tensor:
        """The one adapter whose parameters are the gated sum of several'.

        Args:
            adapters (Sequence[BaseAdapter]): K adapters of equal
                :attr:`wide_key`.
            gates (Tensor): Weights of shape (K, ).
            x (Tensor): Tokens of shape (B, E + H * W, dims).
            grid (tuple[int, int]): H and W, in patches.

        Returns:
            Tensor: Its delta, of the shape of ``x``.
        """
        named = [dict(adapter.named_parameters()) for adapter in adapters]
        mean = {
            key: torch.einsum('k,k...->...', gates,
                              torch.stack([params[key] for params in named]))
            for key in named[0]
        }
        return torch.func.functional_call(adapters[0], mean, (x, grid))
