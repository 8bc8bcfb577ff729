# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Adapters of one slot that run together."""

from typing import Hashable, Iterator, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base_adapter import BaseAdapter, Grid
from .low_rank_adapter import LowRankAdapter, Packed

#: a weight and a bias that gates are folded into
ReadOut = Tuple[Tensor, Optional[Tensor]]
Gates = Union[None, Tensor, ReadOut]


class Group:
    """Adapters that run as one, from their parameters as these are now.

    Args:
        adapters (Sequence[BaseAdapter]): Of one :attr:`BaseAdapter.wide_key`.
        columns (Sequence[int], optional): Their places among a task's
            modules; None when these are all, in order.
        merge (bool): Whether gates apply to parameters instead of outputs.
            Defaults to False.
        key (Hashable): Under which those beside the trunk hand on what they
            hand from level to level. Defaults to None.
    """

    def __init__(self,
                 adapters: Sequence[BaseAdapter],
                 columns: Optional[Sequence[int]] = None,
                 merge: bool = False,
                 key: Hashable = None) -> None:
        self.adapters = list(adapters)
        self.columns = None if columns is None else list(columns)
        self.merge = merge
        self.key = key
        self.kind = type(self.adapters[0])

    @property
    def is_fixed(self) -> bool:
        """Whether it is the same function in every pass from now on."""
        if torch.is_grad_enabled() and any(p.requires_grad
                                           for p in self.parameters()):
            return False
        return issubclass(self.kind, LowRankAdapter) and not any(
            a.training and a.dropout.p for a in self.adapters)

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters of its adapters."""
        return (p for a in self.adapters for p in a.parameters())

    def mine(self, gates: Optional[Tensor]) -> Optional[Tensor]:
        """This group's columns of gates, (..., N) to (..., K)."""
        if gates is None or self.columns is None:
            return gates
        return gates[..., self.columns]

    def __call__(self, x: Tensor, gates: Gates, grid: Optional[Grid],
                 *state) -> object:
        """The gated sum of its adapters.

        Args:
            x (Tensor): Tokens of shape (B, L, dims).
            gates (Tensor, optional): Its own, (K, ), or (B, K): a row for
                each image; None weighs each adapter by one.
            grid (tuple[int, int], optional): H and W, in patches.
            *state: For kinds beside the trunk, see :class:`SideLadder`.

        Returns:
            Tensor: The delta; beside the trunk a pair of it and the state
            for the level above.
        """
        if gates is None and len(self.adapters) == 1:
            return self.adapters[0](x, grid, *state)
        if gates is None:
            gates = x.new_ones(len(self.adapters))
        run = self.kind.merged if self.merge else self.kind.wide
        return run(self.adapters, gates, x, grid, *state)

    def packed(self, dtype: Optional[torch.dtype]) -> 'PackedGroup':
        """The same, packed for as long as its adapters do not change.

        Args:
            dtype (torch.dtype, optional): The precision of autocast; None
                outside of it.
        """
        packed = self.kind.pack(self.adapters)
        return PackedGroup(self.adapters, packed, dtype, self.columns,
                           self.key)

    def folded(self, gates: Optional[Tensor], used: Optional[Tensor],
               dtype: Optional[torch.dtype]) -> Optional['PackedGroup']:
        """The same with gates that do not change either.

        Adapters of weight zero are left out, those beside the trunk only if
        it is zero in all slots: a rung hands its state on whatever its gate.

        Args:
            gates (Tensor, optional): Its own, (K, ); None for ones.
            used (Tensor, optional): Which modules weigh anything anywhere,
                (N, ).
            dtype (torch.dtype, optional): See :meth:`packed`.

        Returns:
            PackedGroup, optional: None if there is nothing to run.
        """
        adapters = self.adapters
        if self.merge:
            adapters, gates = [self.kind.merge(adapters, gates)], None
        elif gates is not None:
            kept = self.mine(used) if self.kind.beside else gates
            kept = kept.nonzero().flatten().tolist()
            adapters, gates = [adapters[k] for k in kept], gates[kept]
        if not adapters:
            return None
        group = Group(adapters, key=self.key).packed(dtype)
        if gates is None:
            gates = group.exact.up.new_ones(len(adapters))
        group.read_out = tuple(
            None if part is None else part.to(dtype)
            for part in group.exact.fold(gates))
        return group


class PackedGroup(Group):
    """Adapters that lie side by side already.

    Args:
        adapters, columns, key: See :class:`Group`.
        packed (Packed): What :meth:`LowRankAdapter.pack` made of them.
        dtype (torch.dtype, optional): The precision of autocast; None
            outside of it.
    """

    def __init__(self, adapters: Sequence[BaseAdapter], packed: Packed,
                 dtype: Optional[torch.dtype],
                 columns: Optional[Sequence[int]], key: Hashable) -> None:
        super().__init__(adapters, columns, key=key)
        # in full precision: what is folded in is rounded once, afterwards
        self.exact = self.kind.lay_out(packed, dtype is not None)
        self.ready = self.exact.to(dtype)
        #: weight and bias of the up projection, where gates are fixed
        self.read_out: Optional[ReadOut] = None

    @property
    def shape(self) -> tuple:
        """Groups of equal shapes can be stacked."""
        return (self.kind, self.exact.up.shape, self.exact.sizes,
                self.exact.scales, self.columns and tuple(self.columns))

    def __call__(self, x: Tensor, gates: Gates, grid: Optional[Grid],
                 *state) -> object:
        """See :class:`Group`; ``gates`` may also be folded in already."""
        hidden = self.ready.hidden(x, grid, *state)
        if isinstance(gates, tuple):
            delta = F.linear(hidden, *gates)
        else:
            delta = self.ready.read_out(hidden, gates)
        return (delta, (hidden, grid)) if self.kind.beside else delta
