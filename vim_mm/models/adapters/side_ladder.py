# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vim_mm.registry import MODELS
from .base_adapter import Grid
from .conv_pass import ConvPass
from .low_rank_adapter import Packed

State = Tuple[Tensor, Grid]


def pool_state(state: State, length: int, grid: Grid) -> Tensor:
    """Bring the state of one level to the grid of the next.

    Args:
        state (tuple[Tensor, tuple[int, int]]): Hidden tokens, (B, E + H * W,
            h), and their H and W.
        length (int): Number of tokens of the next level.
        grid (tuple[int, int]): H and W of the next level.

    Returns:
        Tensor: Shape (B, length, h). Patches are averaged adaptively. Extra
        tokens are kept where the next level has as many, else left out.
    """
    hidden, before = state
    num_extra = hidden.shape[1] - before[0] * before[1]
    extra, patches = hidden[:, :num_extra], hidden[:, num_extra:]
    if tuple(before) != tuple(grid):
        patches = patches.transpose(1, 2).unflatten(2, tuple(before))
        patches = F.adaptive_avg_pool2d(patches, tuple(grid))
        patches = patches.flatten(2).transpose(1, 2)
    missing = length - patches.shape[1]
    if missing != num_extra:
        extra = hidden.new_zeros(len(hidden), missing, hidden.shape[2])
    return torch.cat((extra, patches), dim=1)


# configs, cards and checkpoints of 0.1.0 know it by its old name
@MODELS.register_module(name=['SideLadder', 'PluginNeck'])
class SideLadder(ConvPass):
    """One rung of a ladder beside the trunk, at one of its output levels.

    ``u_l = a(W_down z_l + b_down) + pool(v_{l-1})``,
    ``v_l = a(Conv3x3(u_l))`` and ``M_l = s * (W_up v_l + b_up)``, with ``a``
    the QuickGELU and ``pool`` the average to the grid of level l. ``M_l`` is
    added to the trunk's output ``z_l``; the layers are those of
    :class:`ConvPass`. Nothing is fed back into the trunk: it runs without
    autograd, and once for any number of modules. Ours, after ladder
    side-tuning (arXiv 2206.06522); ``PluginNeck`` until 0.1.0.

    Args:
        dims (int): Width d of the level.
        hidden_dims (int): Width h of the ladder. Defaults to 32.
        levels (Sequence[int], optional): The trunk's ``out_indices``.
            :class:`ViMBackbone` fills them in and refuses other ones.
            Defaults to None.
        **kwargs: As for :class:`ConvPass`.
    """

    beside = True

    def __init__(self,
                 dims: int,
                 hidden_dims: int = 32,
                 levels: Optional[Sequence[int]] = None,
                 **kwargs) -> None:
        super().__init__(dims, hidden_dims, **kwargs)
        self.levels = None if levels is None else list(levels)

    def cfg(self) -> dict:
        """See :meth:`BaseAdapter.cfg`."""
        return dict(super().cfg(), type='SideLadder', levels=self.levels)

    def forward(self,
                x: Tensor,
                grid: Grid,
                state: Optional[State] = None) -> Tuple[Tensor, State]:
        """Climb one rung.

        Args:
            x (Tensor): Tokens of the level, (B, E + H * W, dims).
            grid (tuple[int, int]): H and W.
            state (tuple[Tensor, tuple[int, int]], optional): What the rung
                below hands on; None on the first one.

        Returns:
            tuple: The delta, of the shape of ``x``, and the state for the
            rung above.
        """
        return self.wide([self], x.new_ones(1), x, grid, state)

    def hidden(self,
               packed: Packed,
               x: Tensor,
               grid: Grid,
               state: Optional[State] = None) -> Tensor:
        """See :meth:`LowRankAdapter.hidden`; above a state, if any."""
        below = None if state is None else pool_state(state, x.shape[1], grid)
        return super().hidden(packed, x, grid, below)

    @classmethod
    def wide(cls,
             adapters: Sequence['SideLadder'],
             gates: Tensor,
             x: Tensor,
             grid: Grid,
             state: Optional[State] = None) -> Tuple[Tensor, State]:
        """K rungs as one; their states lie side by side and have no gates.

        See :meth:`BaseAdapter.wide` and :meth:`forward` for the arguments.
        """
        packed = cls.pack(adapters)
        hidden = packed.hidden(x, grid, state)
        delta = packed.read_out(adapters[0].dropout(hidden), gates)
        return delta, (hidden, grid)

    @classmethod
    def fold(cls,
             adapters: Sequence['SideLadder'],
             gates: Tensor,
             width: Optional[int] = None) -> 'SideLadder':
        """See :meth:`BaseAdapter.fold`; a scale of one, grouped.

        A rung hands its state on whatever its gate: give every level the
        same modules in the same order, and a gate of zero where one is to be
        left out.
        """
        folded = super().fold(adapters, gates, width)
        folded.levels = adapters[0].levels
        return folded
