# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from itertools import groupby
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..autocast import autocast_dtype, exact, is_cast
from .dispatch import DISPATCHES, Route, sum_rows, take_rows
from .segments import segment_mm

try:
    from torch.compiler import is_exporting
except ImportError:  # torch 2.6, where graphs are those of exports alone
    from torch.compiler import is_compiling as is_exporting


class ExpertGroup(nn.Module):
    """The parameters of n experts, each ``w2 act(w1 x + b1) + b2``.

    Args:
        num (int): n.
        dims (int): Width C of tokens.
        hidden (int): Hidden width h of an expert.
    """

    def __init__(self, num: int, dims: int, hidden: int) -> None:
        super().__init__()
        self.num = num
        self.w1 = nn.Parameter(torch.empty(num, hidden, dims))
        self.b1 = nn.Parameter(torch.empty(num, hidden))
        self.w2 = nn.Parameter(torch.empty(num, dims, hidden))
        self.b2 = nn.Parameter(torch.empty(num, dims))
        self.reset_parameters()

    def __len__(self) -> int:
        return self.num

    def reset_parameters(self) -> None:
        """Start like dense layers do: truncated normal, biases zero."""
        for name, param in self.named_parameters():
            if name.startswith('w'):
                nn.init.trunc_normal_(param, std=.02)
            else:
                nn.init.zeros_(param)

    def part(self, index: Sequence[int]) -> 'ExpertGroup':
        """A copy of some of its experts."""
        index = torch.as_tensor(
            index, dtype=torch.long, device=self.w1.device)
        group = ExpertGroup(len(index), self.w1.size(2), self.w1.size(1))
        group.to(self.w1)
        with torch.no_grad():
            for name, param in group.named_parameters():
                mine = getattr(self, name)
                param.copy_(mine[index])
                param.requires_grad_(mine.requires_grad)
        return group.train(self.training)


class Experts(BaseModule):
    """Experts of one layer: MLPs of which each token visits a few.

    They are stored in groups, whose parameters are tensors of their own: a
    group can be frozen, or trained alone, exactly.

    Args:
        dims (int): Width C of tokens.
        hidden (int): Hidden width h of one expert.
        groups (Sequence[int]): Number of experts in each group.
        act_cfg (dict): Activation. Defaults to GELU.
        dispatch (str): ``'loop'`` over experts, ``'grouped'`` (torch's
            ``grouped_mm`` where it takes the operands, else the loop),
            ``'dense'`` (all experts on all tokens, as one wide MLP; the graph
            does not depend on the tokens) or ``'auto'``. Exporters and tracers
            get ``'dense'`` whatever is asked for, lest they drop the experts
            that their example does not visit. Defaults to ``'auto'``.

    Raises:
        ValueError: If there is no such dispatch.
    """

    def __init__(self,
                 dims: int,
                 hidden: int,
                 groups: Sequence[int],
                 act_cfg: Dict = dict(type='GELU'),
                 dispatch: str = 'auto') -> None:
        super().__init__()
        if dispatch not in DISPATCHES:
            raise ValueError(f'`dispatch` is {dispatch!r}; give one of '
                             f'{", ".join(DISPATCHES)}.')
        self.dims, self.hidden = dims, hidden
        self.dispatch = dispatch
        self.act = MODELS.build(act_cfg)
        self.groups = nn.ModuleList(
            ExpertGroup(num, dims, hidden) for num in groups)

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def first(self, num: int) -> List[ExpertGroup]:
        """The groups that hold the first ``num`` experts."""
        groups, found = [], 0
        for group in self.groups:
            if found < num:
                groups.append(group)
                found += len(group)
        return groups

    def weights(self, num: int) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """``w1, b1, w2, b2`` of the first ``num`` experts."""
        groups = self.first(num)
        return tuple(
            getattr(groups[0], name) if len(groups) == 1 else torch.cat(
                [getattr(group, name) for group in groups])
            for name in ('w1', 'b1', 'w2', 'b2'))

    def forward(self,
                x: Tensor,
                gates: Tensor,
                index: Tensor,
                num: Optional[int] = None,
                between: Optional[Callable] = None) -> Tensor:
        """Send tokens through their experts.

        Args:
            x (Tensor): (N, C) tokens.
            gates (Tensor): (N, k) weights of each token's experts.
            index (Tensor): (N, k) which experts these are.
            num (int, optional): How many experts take part, the first ones;
                all when None.
            between (Callable, optional): What is done to all hidden units of
                the tokens, (N, any, h), after the activation.

        Returns:
            Tensor: (N, C), in the precision of ``x``, or autocast's.
        """
        num = len(self) if num is None else num
        w1, b1, w2, b2 = self.weights(num)
        dtype = autocast_dtype(x.device.type)
        if dtype is not None and is_cast(x):
            x, w1, b1, w2, b2 = (t.to(dtype) for t in (x, w1, b1, w2, b2))
        gates = gates.to(x.dtype)
        with exact(x.device.type):
            if self.dispatch == 'dense' or is_exporting() \
                    or torch.jit.is_tracing():
                return self._dense(x, gates, index, w1, b1, w2, b2, between)
            return self._sorted(x, gates, index, w1, b1, w2, b2, between)

    def _sorted(self, x: Tensor, gates: Tensor, index: Tensor, w1: Tensor,
                b1: Tensor, w2: Tensor, b2: Tensor,
                between: Optional[Callable]) -> Tensor:
        grouped = self.dispatch != 'loop'
        route = Route.of(index, len(w1))
        h = self.act(
            segment_mm(
                take_rows(x, route), w1.transpose(1, 2), route.ends, grouped,
                b1))
        if between is not None:
            rows = route.by_token
            h = between(take_rows(h, rows).unflatten(0, (-1, route.k)))
            h = sum_rows(h.flatten(0, 1), rows)
        y = segment_mm(h, w2.transpose(1, 2), route.ends, grouped, b2)
        return sum_rows(y, route, gates)

    def _dense(self, x: Tensor, gates: Tensor, index: Tensor, w1: Tensor,
               b1: Tensor, w2: Tensor, b2: Tensor,
               between: Optional[Callable]) -> Tensor:
        every = scatter(gates, index, b2)  # zero where not chosen
        h = self.act(F.linear(x, w1.flatten(0, 1), b1.flatten()))
        h = h.unflatten(1, (-1, self.hidden))
        h = (h if between is None else between(h)) * every.unsqueeze(2)
        y = F.linear(h.flatten(1), w2.transpose(0, 1).flatten(1))
        return torch.addmm(y, every, b2)

    # ---------------------------------------------------------- structure

    def add(self, num: int, like: Optional[Sequence[int]] = None) -> None:
        """Append a group of experts; the others stay as they are.

        Args:
            num (int): How many.
            like (Sequence[int], optional): Which experts they start as copies
                of; fresh ones when None.
        """
        if like is None:
            group = ExpertGroup(num, self.dims, self.hidden)
            group.to(self.groups[0].w1)
        else:
            group = self.gathered(like)
        group.train(self.training).requires_grad_(True)
        self.groups.append(group)

    def gathered(self, index: Sequence[int]) -> ExpertGroup:
        """A group with copies of these experts, in this order."""
        whole = ExpertGroup(len(self), self.dims, self.hidden)
        whole.to(self.groups[0].w1)
        with torch.no_grad():
            for param, value in zip((whole.w1, whole.b1, whole.w2, whole.b2),
                                    self.weights(len(self))):
                param.copy_(value)
        return whole.part(index)

    def split(self, index: Sequence[int]) -> None:
        """Let these experts and the others be in groups of their own.

        Groups are cut where need be, and none are joined; their order stays.

        Args:
            index (Sequence[int]): Some of the experts.
        """
        chosen, groups, start = set(index), [], 0
        for group in self.groups:
            runs = [
                list(run) for _, run in groupby(
                    range(len(group)), lambda i: start + i in chosen)
            ]
            groups += [group] if len(runs) == 1 else map(group.part, runs)
            start += len(group)
        self.groups = nn.ModuleList(groups)

    def resize(self, sizes: Sequence[int]) -> None:
        """Hold fresh groups of these sizes, for weights to be loaded."""
        first = self.groups[0].w1
        self.groups = nn.ModuleList(
            ExpertGroup(size, self.dims, self.hidden) for size in sizes)
        self.groups.to(first).train(self.training)

    def keep(self, index: Sequence[int]) -> None:
        """Drop all experts but these; groups stay apart."""
        groups, start = [], 0
        for group in self.groups:
            mine = [i - start for i in index if 0 <= i - start < len(group)]
            start += len(group)
            if mine:
                groups.append(group.part(mine))
        self.groups = nn.ModuleList(groups)


def scatter(gates: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """(N, k) gates in their experts' columns, zero elsewhere: (N, E)."""
    columns = gates.new_zeros(gates.size(0), like.size(0))
    return columns.scatter(1, index, gates)
