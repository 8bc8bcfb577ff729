# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""From tokens to their experts and back, without padding or dropped tokens.

Tokens are copied once for each of their experts and sorted by expert, so that
each expert's rows lie together and one :func:`segment_mm` serves all experts.
The loop over experts and torch's ``grouped_mm`` share everything else, hence
they are bit-equal on CPUs.
"""

from typing import Iterator, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

#: ways to run experts; ``'auto'`` is ``'grouped'``, which was never slower than
#: the loop on CPUs, nor ``'dense'`` ever faster (1 to 4,096 tokens, 8 to 64
#: experts: ``benchmarks/bench_moe.py`` prints the table)
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


# ------------------------------------------------- one product per expert


def can_group(a: Tensor, b: Tensor, *widths: int) -> bool:
    """Whether torch's ``grouped_mm`` takes two operands, and is of use.

    It wants addresses and all strides to be multiples of 16 bytes, those of
    its gradients included. On CUDA it is fast and free of host
    synchronisation in bf16 from compute capability 9.0 on.

    Args:
        a, b (Tensor): The operands.
        *widths (int): All widths of the product.
    """
    if not hasattr(F, 'grouped_mm') or not a.numel():
        return False
    if a.is_cuda:
        major, _ = torch.cuda.get_device_capability(a.device)
        fast = a.dtype == torch.bfloat16 and major >= 9
    else:
        fast = a.dtype in (torch.float32, torch.bfloat16, torch.float16)
    sizes = [width * a.element_size() for width in widths]
    return fast and not any(
        number % 16 for number in (a.data_ptr(), b.data_ptr(), *sizes))


def segments(ends: Tensor) -> Iterator[Tuple[int, slice]]:
    """Each expert and its rows; the device is waited for."""
    start = 0
    for expert, end in enumerate(ends.tolist()):
        yield expert, slice(start, end)
        start = end


def owners(ends: Tensor, num_rows: int) -> Tensor:
    """The expert of each row; the device is not waited for."""
    rows = torch.arange(num_rows, device=ends.device)
    return torch.bucketize(rows, ends, right=True)


def one_hot(ends: Tensor, x: Tensor) -> Tensor:
    """(R, E), one in the column of each row's expert, else zero."""
    every = torch.arange(len(ends), device=ends.device)
    return (owners(ends, x.size(0)).unsqueeze(1) == every).to(x.dtype)


@torch.library.custom_op('vim_mm::segment_mm', mutates_args=())
def _segment_mm(x: Tensor, weight: Tensor, bias: Optional[Tensor],
                ends: Tensor, grouped: bool) -> Tensor:
    if grouped and can_group(x, weight, *weight.shape[1:]):
        out = F.grouped_mm(x, weight, offs=ends)
    else:
        out = x.new_empty(x.size(0), weight.size(2))
        for expert, rows in segments(ends):
            torch.mm(x[rows], weight[expert], out=out[rows])
    if bias is not None and out.is_cuda:
        out.addmm_(one_hot(ends, out), bias)
    elif bias is not None:
        for expert, rows in segments(ends):
            out[rows] += bias[expert]
    return out


@torch.library.custom_op('vim_mm::segment_outer', mutates_args=())
def _segment_outer(x: Tensor, y: Tensor, ends: Tensor,
                   grouped: bool) -> Tensor:
    if grouped and can_group(x, y, x.size(1), y.size(1)):
        return F.grouped_mm(x.t(), y, offs=ends)
    out = x.new_empty(ends.numel(), x.size(1), y.size(1))
    for expert, rows in segments(ends):
        torch.mm(x[rows].t(), y[rows], out=out[expert])
    return out


@torch.library.custom_op('vim_mm::segment_sum', mutates_args=())
def _segment_sum(x: Tensor, ends: Tensor) -> Tensor:
    if x.is_cuda:
        return one_hot(ends, x).t() @ x
    out = x.new_empty(ends.numel(), x.size(1))
    for expert, rows in segments(ends):
        torch.sum(x[rows], 0, out=out[expert])
    return out


@_segment_mm.register_fake
def _(x: Tensor, weight: Tensor, bias: Optional[Tensor], ends: Tensor,
      grouped: bool) -> Tensor:
    return x.new_empty(x.size(0), weight.size(2))


@_segment_outer.register_fake
def _(x: Tensor, y: Tensor, ends: Tensor, grouped: bool) -> Tensor:
    return x.new_empty(ends.numel(), x.size(1), y.size(1))


@_segment_sum.register_fake
def _(x: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(ends.numel(), x.size(1))


def _keep_mm(ctx, inputs: tuple, output: Tensor) -> None:
    x, weight, _, ends, ctx.grouped = inputs
    ctx.save_for_backward(x, weight, ends)


def _segment_mm_backward(ctx, grad: Tensor) -> tuple:
    x, weight, ends = ctx.saved_tensors
    grad = grad.contiguous()  # an expanded one is refused
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = _segment_mm(grad, weight.transpose(1, 2), None, ends,
                             ctx.grouped)
    if ctx.needs_input_grad[1] and weight.stride(2) == 1:
        grad_weight = _segment_outer(x, grad, ends, ctx.grouped)
    elif ctx.needs_input_grad[1]:  # laid out like the weight: no copy later
        grad_weight = _segment_outer(grad, x, ends,
                                     ctx.grouped).transpose(1, 2)
    if ctx.needs_input_grad[2]:
        grad_bias = _segment_sum(grad, ends)
    return grad_x, grad_weight, grad_bias, None, None


def _keep_outer(ctx, inputs: tuple, output: Tensor) -> None:
    *kept, ctx.grouped = inputs
    ctx.save_for_backward(*kept)


def _segment_outer_backward(ctx, grad: Tensor) -> tuple:
    x, y, ends = ctx.saved_tensors
    grad = grad.contiguous()
    grad_x = _segment_mm(y, grad.transpose(1, 2), None, ends, ctx.grouped)
    grad_y = _segment_mm(x, grad, None, ends, ctx.grouped)
    return grad_x, grad_y, None, None


def _keep_sum(ctx, inputs: tuple, output: Tensor) -> None:
    x, ends = inputs
    ctx.save_for_backward(owners(ends, x.size(0)))


def _segment_sum_backward(ctx, grad: Tensor) -> tuple:
    rows, = ctx.saved_tensors
    return grad.index_select(0, rows), None


_segment_mm.register_autograd(_segment_mm_backward, setup_context=_keep_mm)
_segment_outer.register_autograd(
    _segment_outer_backward, setup_context=_keep_outer)
_segment_sum.register_autograd(_segment_sum_backward, setup_context=_keep_sum)


def segment_mm(x: Tensor,
               weight: Tensor,
               ends: Tensor,
               grouped: bool = True,
               bias: Optional[Tensor] = None) -> Tensor:
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
        bias (Tensor, optional): (E, N) added to each expert's rows.

    Returns:
        Tensor: (R, N).
    """
    return _segment_mm(x.contiguous(), weight, bias, ends, grouped)
