# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""One matrix product per expert, of rows that are sorted by expert.

Operators of their own, which compilers and exporters take as they are: no
graph depends on how many rows an expert has.
"""

from typing import Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor


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
