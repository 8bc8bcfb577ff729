# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Adapters that end in an up projection, and K of them side by side."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from itertools import chain
from typing import Callable, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .base_adapter import BaseAdapter, Grid

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Packed:
    """K adapters side by side: what one pass over all of them reads.

    Attributes:
        like (LowRankAdapter): One of them, for what all have in common.
        tensors (tuple[Tensor]): What comes before the up projection, see
            :meth:`LowRankAdapter.pack`.
        up (Tensor): Up projections, (dims, sum of h_k).
        bias (Tensor, optional): Their biases, (K, dims).
        sizes (tuple[int]): Hidden widths h_k.
        scales (tuple[float]): Output scales.
        act (callable, optional): The activation; that of the kind if None.
        groups (int): Groups of a convolution among the tensors.
    """
    like: 'LowRankAdapter'
    tensors: Tuple[Tensor, ...]
    up: Tensor
    bias: Optional[Tensor]
    sizes: Tuple[int, ...]
    scales: Tuple[float, ...]
    act: Optional[Activation] = None
    groups: int = 1

    def hidden(self, x: Tensor, grid: Optional[Grid], *state) -> Tensor:
        """Hidden units of all, side by side: (B, L, sum of h_k)."""
        return self.like.hidden(self, x, grid, *state)

    def scaled(self, gates: Tensor) -> Tensor:
        """Multiply every gate, (..., K), by the scale of its adapter."""
        if all(scale == 1 for scale in self.scales):  # spare a copy
            return gates
        return gates * gates.new_tensor(self.scales)

    def repeated(self, gates: Tensor) -> Tensor:
        """Repeat gate k h_k times: (..., K) to (..., sum of h_k)."""
        if len(set(self.sizes)) == 1:
            return gates.unsqueeze(-1).expand(
                *gates.shape, self.sizes[0]).flatten(-2)
        parts = zip(gates.split(1, dim=-1), self.sizes)
        return torch.cat([g.expand(*g.shape[:-1], h) for g, h in parts], -1)

    def fold(self, gates: Tensor) -> Tuple[Tensor, Optional[Tensor]]:
        """Weight and bias of ``sum_k g_k s_k (W_k v_k + b_k)``.

        Args:
            gates (Tensor): Weights of shape (K, ).

        Returns:
            tuple: The weight, (dims, sum of h_k), and the bias, (dims, ) or
            None.
        """
        gates = self.scaled(gates)
        return self.up * self.repeated(gates), self.biases(gates, self.bias)

    @staticmethod
    def biases(gates: Tensor, bias: Optional[Tensor]) -> Optional[Tensor]:
        """The gated sums of biases, each one with the same bits.

        A product of matrices may round otherwise for one row than for many.

        Args:
            gates (Tensor): Weights, (..., K).
            bias (Tensor, optional): The biases, (..., K, dims).

        Returns:
            Tensor, optional: Shape (..., dims).
        """
        return None if bias is None else (gates.unsqueeze(-1) * bias).sum(-2)

    def read_out(self, hidden: Tensor, gates: Tensor) -> Tensor:
        """The gated sum, from what :meth:`hidden` gives.

        Gates of a whole batch are folded into the small weight, gates of
        single images scale the hidden units.

        Args:
            hidden (Tensor): Shape (B, L, sum of h_k).
            gates (Tensor): Weights of shape (K, ) or (B, K).

        Returns:
            Tensor: Shape (B, L, dims).
        """
        if gates.dim() == 1:
            return F.linear(hidden, *self.fold(gates))
        gates = self.scaled(gates)
        delta = (hidden * self.repeated(gates)[:, None]) @ self.up.t()
        if self.bias is None:
            return delta
        return delta + self.biases(gates, self.bias)[:, None]

    def times(self, factor: float) -> 'Packed':
        """The same with hidden units that are ``1 / factor`` as large."""
        return replace(self, up=factor * self.up)

    def to(self, dtype: Optional[torch.dtype]) -> 'Packed':
        """The same in another precision, or in this one when None."""
        return replace(
            self,
            tensors=tuple(tensor.to(dtype) for tensor in self.tensors),
            up=self.up.to(dtype),
            bias=None if self.bias is None else self.bias.to(dtype))


class LowRankAdapter(BaseAdapter):
    """Kinds of the form ``M(x) = s (W_up v(x) + b_up)``.

    The hidden units v of K adapters lie side by side, and their gated sum is
    exactly one adapter of the sum of their widths. A kind has a linear layer
    ``up``, perhaps without bias, a ``dropout`` before it, and says in
    :meth:`hidden` what v is.
    """

    @abstractmethod
    def hidden(self, packed: Packed, x: Tensor, grid: Optional[Grid],
               *state) -> Tensor:
        """Hidden units of adapters that are packed, before dropout.

        Args:
            packed (Packed): The adapters.
            x (Tensor): Tokens of shape (B, L, dims).
            grid (tuple[int, int], optional): H and W, in patches.
            *state: What kinds beside the trunk take more, see
                :class:`SideLadder`.

        Returns:
            Tensor: Shape (B, L, sum of h).
        """

    @classmethod
    @abstractmethod
    def of_width(cls, adapters: Sequence['LowRankAdapter'],
                 hidden_dims: int) -> 'LowRankAdapter':
        """An adapter like these, ``hidden_dims`` wide, with a scale of one."""

    @property
    def adds_nothing(self) -> bool:
        """See :attr:`BaseAdapter.adds_nothing`: ``up`` is still zero."""
        return not any(param.any() for param in self.up.parameters())

    @classmethod
    def pack(cls,
             adapters: Sequence['LowRankAdapter'],
             groups: int = 1) -> Packed:
        """Lay K adapters side by side; gradients flow to their parameters.

        Its tensors are the parameters before the up projection in the order
        of :meth:`named_parameters`, one below the other.

        Args:
            adapters (Sequence[LowRankAdapter]): The adapters.
            groups (int): See :class:`Packed`. Defaults to 1.
        """
        before = [[
            param for layer, params in adapter.named_children()
            if layer != 'up' for param in params.parameters()
        ] for adapter in adapters]
        first = adapters[0]
        return Packed(
            first,
            tuple(map(torch.cat, zip(*before))),
            torch.cat([adapter.up.weight for adapter in adapters], dim=1),
            None if first.up.bias is None else torch.stack(
                [adapter.up.bias for adapter in adapters]),
            tuple(adapter.up.in_features for adapter in adapters),
            tuple(adapter.scale for adapter in adapters),
            groups=groups)

    @classmethod
    def lay_out(cls, packed: Packed, low: bool) -> Packed:
        """What stays packed for many passes, arranged for speed.

        Args:
            packed (Packed): Frozen adapters.
            low (bool): Whether it is to run in low precision; else, on a
                CPU, the arrangement changes no bit.
        """
        return packed

    @classmethod
    def wide(cls, adapters: Sequence['LowRankAdapter'], gates: Tensor,
             x: Tensor, grid: Optional[Grid]) -> Tensor:
        """K adapters as exactly one, of the sum of their widths.

        See :meth:`BaseAdapter.wide` for the arguments.
        """
        packed = cls.pack(adapters)
        hidden = adapters[0].dropout(packed.hidden(x, grid))
        return packed.read_out(hidden, gates)

    @classmethod
    @torch.no_grad()
    def fold(cls,
             adapters: Sequence['LowRankAdapter'],
             gates: Tensor,
             width: Optional[int] = None) -> 'LowRankAdapter':
        """See :meth:`BaseAdapter.fold`; the result has a scale of one."""
        members = cls._padding(adapters, width)
        packed = cls.pack(adapters)
        padding = members * max(packed.sizes)
        folded = cls.of_width(adapters, sum(packed.sizes) + padding)
        folded.to(packed.up)
        weight, bias = packed.fold(gates)
        values: List[Tensor] = [*packed.tensors, weight]
        values += [] if bias is None else [bias]
        layers = [x for n, x in folded.named_children() if n != 'up']
        params = chain(*(layer.parameters() for layer in [*layers, folded.up]))
        for param, value in zip(params, values):
            param.zero_()
            param[tuple(map(slice, value.shape))] = value
        return folded.eval()
