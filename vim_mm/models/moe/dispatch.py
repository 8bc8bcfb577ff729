# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""From tokens to their experts and back, without padding or dropped tokens.

Tokens are copied once for each of their experts and sorted by expert, so that
each expert's rows lie together and one product, see :mod:`.segments`, serves
all experts. The loop over experts and torch's ``grouped_mm`` share everything
else, hence they are bit-equal on CPUs.
"""

from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

#: ways to run experts; ``'auto'`` is ``'grouped'``: on CPUs level with the
#: loop, and ``'dense'`` was not faster (1 to 4,096 tokens, 8 to 64 experts:
#: ``benchmarks/bench_moe.py`` prints the table)
DISPATCHES = ('auto', 'loop', 'grouped', 'dense')


class Route(NamedTuple):
    """Where the rows of tokens go. R = number of tokens times k.

    Attributes:
        experts (Tensor): (R,) expert of each sorted row, ascending.
        order (Tensor): (R,) which row, token by token, each sorted row is.
        inverse (Tensor): (R,) the sorted row of each row, token by token.
        ends (Tensor): (E,) int32, end of each expert's sorted rows.
        k (int): Experts per token.
    """
    experts: Tensor
    order: Tensor
    inverse: Tensor
    ends: Tensor
    k: int

    @classmethod
    def of(cls, index: Tensor, num_experts: int) -> 'Route':
        """Sort tokens by their experts.

        Args:
            index (Tensor): (N, k) experts of each token.
            num_experts (int): E.
        """
        experts, order = index.flatten().sort(stable=True)
        places = torch.arange(order.numel(), device=order.device)
        inverse = torch.empty_like(order).scatter_(0, order, places)
        every = torch.arange(num_experts, device=order.device)
        ends = torch.searchsorted(experts, every, right=True, out_int32=True)
        return cls(experts, order, inverse, ends, index.size(1))

    @property
    def by_token(self) -> 'Route':
        """The way of sorted rows to the order of tokens, a row each."""
        return self._replace(order=self.inverse, inverse=self.order, k=1)


# Row r belongs to token n and weighs gate g. These three are the derivatives
# of the sum of all g <x_n, y_r>, and each one's gradient consists of the other
# two. As bags of an embedding, each is one pass without a copy of all rows,
# and there are no slow scattering sums.


class _SumRows(Function):

    @staticmethod
    def forward(ctx, y: Tensor, gates: Optional[Tensor], order: Tensor,
                inverse: Tensor) -> Tensor:
        kept = None if gates is None else y
        ctx.save_for_backward(kept, gates, order, inverse)
        return F.embedding_bag(
            inverse, y, mode='sum', per_sample_weights=gates)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        y, gates, *places = ctx.saved_tensors
        grad_gates = None
        if ctx.needs_input_grad[1]:
            grad_gates = _Products.apply(grad, y, *places)
        return _TakeRows.apply(grad, gates, *places), grad_gates, None, None


class _TakeRows(Function):

    @staticmethod
    def forward(ctx, x: Tensor, gates: Optional[Tensor], order: Tensor,
                inverse: Tensor) -> Tensor:
        kept = None if gates is None else x
        ctx.save_for_backward(kept, gates, order, inverse)
        tokens = order.div(inverse.size(1), rounding_mode='floor')
        if gates is None:
            return x.index_select(0, tokens)
        return F.embedding_bag(
            tokens.unsqueeze(1),
            x,
            mode='sum',
            per_sample_weights=gates.flatten()[order].unsqueeze(1))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        x, gates, *places = ctx.saved_tensors
        grad_gates = None
        if ctx.needs_input_grad[1]:
            grad_gates = _Products.apply(x, grad, *places)
        return _SumRows.apply(grad, gates, *places), grad_gates, None, None


class _Products(Function):

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, order: Tensor,
                inverse: Tensor) -> Tensor:
        ctx.save_for_backward(x, y, order, inverse)
        k = inverse.size(1)
        starts = torch.arange(0, y.size(0), k, device=x.device)
        tokens = torch.arange(y.size(0), device=x.device) // k
        # public functions need a copy of the rows
        products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            x.contiguous(), y.contiguous(), inverse.flatten(), starts, tokens,
            0)
        return products.view_as(inverse)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        x, y, *places = ctx.saved_tensors
        grad_x = _SumRows.apply(y, grad, *places)
        grad_y = _TakeRows.apply(x, grad, *places)
        return grad_x, grad_y, None, None


def take_rows(x: Tensor, route: Route) -> Tensor:
    """The rows of (N, C) tokens, one per expert, sorted: (R, C)."""
    inverse = route.inverse.unflatten(0, (-1, route.k))
    return _TakeRows.apply(x, None, route.order, inverse)


def sum_rows(y: Tensor,
             route: Route,
             gates: Optional[Tensor] = None) -> Tensor:
    """The sums over each token's experts of (R, C) sorted rows: (N, C).

    Args:
        y (Tensor): (R, C) rows.
        route (Route): Where they belong.
        gates (Tensor, optional): (N, k) weights, in the precision of ``y``;
            all one when None.
    """
    inverse = route.inverse.unflatten(0, (-1, route.k))
    return _SumRows.apply(y, gates, route.order, inverse)
