# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""From tokens to their experts and back, without padding or dropped tokens.

Tokens are copied once for each of their experts and sorted by expert, so that
each expert's rows lie together and one :func:`segment_mm` serves all experts.
The loop over experts and torch's ``grouped_mm`` share everything else, hence
they are bit-equal on CPUs.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

#: ways to run experts; ``'auto'`` takes the faster of the first two
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


# Each of these two is the other's gradient, by which neither needs a slow
# scattering sum.


class _TakeRows(Function):

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, inverse: Tensor,
                k: int) -> Tensor:
        ctx.save_for_backward(order, inverse)
        ctx.k = k
        return x.index_select(0, order.div(k, rounding_mode='floor'))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        return _SumRows.apply(grad, *ctx.saved_tensors, ctx.k), *[None] * 3


class _SumRows(Function):

    @staticmethod
    def forward(ctx, y: Tensor, order: Tensor, inverse: Tensor,
                k: int) -> Tensor:
        ctx.save_for_backward(order, inverse)
        ctx.k = k
        return y.index_select(0, inverse).unflatten(0, (-1, k)).sum(1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        return _TakeRows.apply(grad, *ctx.saved_tensors, ctx.k), *[None] * 3


def take_rows(x: Tensor, route: Route) -> Tensor:
    """The rows of (N, C) tokens, one per expert, sorted: (R, C)."""
    return _TakeRows.apply(x, route.order, route.inverse, route.k)


def sum_rows(y: Tensor, route: Route) -> Tensor:
    """The sums over each token's experts of (R, C) sorted rows: (N, C)."""
    return _SumRows.apply(y, route.order, route.inverse, route.k)


# ------------------------------------------------- one product per expert


def can_group(x: Tensor, *widths: int) -> bool:
    """Whether torch's ``grouped_mm`` takes operands like ``x``.

    It wants all strides to be multiples of 16 bytes, those of its gradients
    included. On CUDA it is fast and free of host synchronisation in bf16 from
    compute capability 9.0 on.

    Args:
        x (Tensor): One operand.
        *widths (int): All widths of the product.
    """
    if not hasattr(F, 'grouped_mm') or not x.numel():
        return False
    if x.is_cuda:
        major, _ = torch.cuda.get_device_capability(x.device)
        fast = x.dtype == torch.bfloat16 and major >= 9
    else:
        fast = x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return fast and not any(n * x.element_size() % 16 for n in widths)


@torch.library.custom_op('vim_mm::segment_mm', mutates_args=())
def _segment_mm(x: Tensor, weight: Tensor, ends: Tensor,
                grouped: bool) -> Tensor:
    if grouped and can_group(x, *weight.shape[1:]):
        return F.grouped_mm(x, weight, offs=ends)
    out = x.new_empty(x.size(0), weight.size(2))
    start = 0
    for expert, end in enumerate(ends.tolist()):
        torch.mm(x[start:end], weight[expert], out=out[start:end])
        start = end
    return out


@torch.library.custom_op('vim_mm::segment_outer', mutates_args=())
def _segment_outer(x: Tensor, y: Tensor, ends: Tensor,
                   grouped: bool) -> Tensor:
    if grouped and can_group(x, x.size(1), y.size(1)):
        return F.grouped_mm(x.t(), y, offs=ends)
    out = x.new_empty(ends.numel(), x.size(1), y.size(1))
    start = 0
    for expert, end in enumerate(ends.tolist()):
        torch.mm(x[start:end].t(), y[start:end], out=out[expert])
        start = end
    return out


@_segment_mm.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor, grouped: bool) -> Tensor:
    return x.new_empty(x.size(0), weight.size(2))


@_segment_outer.register_fake
def _(x: Tensor, y: Tensor, ends: Tensor, grouped: bool) -> Tensor:
    return x.new_empty(ends.numel(), x.size(1), y.size(1))


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.grouped = inputs[3]


def _segment_mm_backward(ctx, grad: Tensor) -> tuple:
    x, weight, ends = ctx.saved_tensors
    grad = grad.contiguous()  # an expanded one is refused
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_x = _segment_mm(grad, weight.transpose(1, 2), ends, ctx.grouped)
    if ctx.needs_input_grad[1]:
        grad_weight = _segment_outer(x, grad, ends, ctx.grouped)
    return grad_x, grad_weight, None, None


def _segment_outer_backward(ctx, grad: Tensor) -> tuple:
    x, y, ends = ctx.saved_tensors
    grad = grad.contiguous()
    grad_x = _segment_mm(y, grad.transpose(1, 2), ends, ctx.grouped)
    grad_y = _segment_mm(x, grad, ends, ctx.grouped)
    return grad_x, grad_y, None, None


_segment_mm.register_autograd(_segment_mm_backward, setup_context=_keep)
_segment_outer.register_autograd(
    _segment_outer_backward, setup_context=_keep)


def segment_mm(x: Tensor,
               weight: Tensor,
               ends: Tensor,
               grouped: bool = True) -> Tensor:
    """Multiply each expert's rows with its matrix.

    It traces as one operator, without a look at ``ends``.

    Args:
        x (Tensor): (R, K) rows, sorted by expert.
        weight (Tensor): (E, K, N), in the precision of ``x``; a transposed
            view is as good.
        ends (Tensor): (E,) int32, ascending; the last is R.
        grouped (bool): Whether to use torch's ``grouped_mm`` where
            it takes the operands, and a loop with a host
            synchronisation elsewhere. Defaults to True.

    Returns:
        Tensor: (R, N).
    """
    return _segment_mm(x, weight, ends, grouped)
