# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A stand-in for ``mmcv._ext`` where mmcv was installed without compiled ops.

Compiling mmcv's operators takes half an hour and a matching compiler, yet
``import mmdet.models`` fails without the extension module. torchvision ships
the operators that detectors need, on CPU and on GPU, so an import finder
behind all others (``import_hooks``) offers a module made from them. Compiled
ops, when present, are found first and the stand-in is never used.

Each function below keeps the argument contract of mmcv's C++ binding: results
are mostly written into tensors the caller allocated.
"""

from typing import Any, Callable, Dict, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F


def missing_op(name: str) -> Callable:
    """A function that refuses to run, in place of the op ``name``.

    mmcv imports all its ops at once, so a missing one may only complain when
    it is called.
    """
    if name.startswith('__'):
        raise AttributeError(name)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f'The mmcv op "{name}" needs compiled ops, and this mmcv was '
            'installed without them: install a build of onedl-mmcv (or mmcv) '
            'with compiled ops that matches your torch.')

    refuse.__name__ = name
    return refuse


def _float(x: Tensor) -> Tensor:
    """torchvision's CPU operators know float32 and float64 only."""
    return x if x.dtype == torch.float64 else x.float()


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float,
        offset: int) -> Tensor:
    """Indices (K,) of the kept ``boxes`` (N, 4), best score first.

    ``offset`` 1 counts pixels: widths and heights are ``x2 - x1 + 1``, which
    is the same as moving the far corner by one.
    """
    corners = _float(boxes) + boxes.new_tensor([0, 0, offset, offset])
    return torch.ops.torchvision.nms(
        _float(corners), scores.to(_float(corners).dtype), iou_threshold)


def softnms(boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float,
            sigma: float, min_score: float, method: int,
            offset: int) -> Tensor:
    """Soft-NMS; kept boxes with their scores go to ``dets`` (N, 5).

    ``method``: 0 hard, 1 linear, 2 gaussian decay of overlapping scores.
    """
    scores, alive = scores.clone(), torch.ones_like(scores, dtype=torch.bool)
    corners = boxes + boxes.new_tensor([0, 0, offset, offset])
    area = (corners[:, 2:] - corners[:, :2]).prod(1)
    kept = []
    while alive.any():
        best = int(scores.masked_fill(~alive, -torch.inf).argmax())
        dets[len(kept)] = torch.cat([boxes[best], scores[best, None]])
        kept.append(best)
        alive[best] = False
        low = torch.maximum(corners[:, :2], corners[best, :2])
        high = torch.minimum(corners[:, 2:], corners[best, 2:])
        inter = (high - low).clamp(min=0).prod(1)
        iou = inter / (area + area[best] - inter)
        if method == 2:
            decay = torch.exp(-iou * iou / sigma)
        else:
            rest = 1 - iou if method == 1 else torch.zeros_like(iou)
            decay = torch.where(iou >= iou_threshold, rest, 1.)
        scores = torch.where(alive, scores * decay, scores)
        alive &= scores >= min_score
    return torch.tensor(kept, dtype=torch.int64)


def _only_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError(
            'RoIAlign with pool_mode="max" needs compiled mmcv ops, and this '
            'mmcv was installed without them: use pool_mode="avg" or install '
            'a build of onedl-mmcv with compiled ops.')


def roi_align_forward(input: Tensor, rois: Tensor, output: Tensor,
                      argmax_y: Tensor, argmax_x: Tensor, aligned_height: int,
                      aligned_width: int, spatial_scale: float,
                      sampling_ratio: int, pool_mode: int,
                      aligned: bool) -> None:
    """Pools ``rois`` (K, 5) into ``output`` (K, C, height, width)."""
    _only_average(pool_mode)
    x = _float(input)
    output.copy_(
        torch.ops.torchvision.roi_align(x, rois.to(x.dtype), spatial_scale,
                                        aligned_height, aligned_width,
                                        sampling_ratio, aligned))


def roi_align_backward(grad_output: Tensor, rois: Tensor, argmax_y: Tensor,
                       argmax_x: Tensor, grad_input: Tensor,
                       aligned_height: int, aligned_width: int,
                       spatial_scale: float, sampling_ratio: int,
                       pool_mode: int, aligned: bool) -> None:
    """Writes the gradient of the input map (N, C, H, W)."""
    _only_average(pool_mode)
    grad = _float(grad_output)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(grad, rois.to(grad.dtype),
                                                  spatial_scale,
                                                  aligned_height,
                                                  aligned_width,
                                                  *grad_input.shape,
                                                  sampling_ratio, aligned))


def roi_pool_forward(input: Tensor, rois: Tensor, output: Tensor,
                     argmax: Tensor, pooled_height: int, pooled_width: int,
                     spatial_scale: float) -> None:
    """Max-pools ``rois`` (K, 5) into ``output`` (K, C, height, width)."""
    x = _float(input)
    pooled, where = torch.ops.torchvision.roi_pool(x, rois.to(x.dtype),
                                                   spatial_scale,
                                                   pooled_height,
                                                   pooled_width)
    output.copy_(pooled)
    argmax.copy_(where)


def roi_pool_backward(grad_output: Tensor, rois: Tensor, argmax: Tensor,
                      grad_input: Tensor, pooled_height: int,
                      pooled_width: int, spatial_scale: float) -> None:
    """Writes the gradient of the input map (N, C, H, W)."""
    grad = _float(grad_output)
    grad_input.copy_(
        torch.ops.torchvision._roi_pool_backward(grad, rois.to(grad.dtype),
                                                 argmax, spatial_scale,
                                                 pooled_height, pooled_width,
                                                 *grad_input.shape))


def modulated_deform_conv_forward(input: Tensor, weight: Tensor, bias: Tensor,
                                  ones: Tensor, offset: Tensor, mask: Tensor,
                                  output: Tensor, columns: Tensor,
                                  **geometry: int) -> None:
    """Deformable convolution v2 into ``output`` (N, C_out, H, W)."""
    output.copy_(
        torch.ops.torchvision.deform_conv2d(
            input, weight, offset, mask, _bias(bias, weight),
            *_geometry(geometry), True))


def modulated_deform_conv_backward(input: Tensor, weight: Tensor, bias: Tensor,
                                   ones: Tensor, offset: Tensor, mask: Tensor,
                                   columns: Tensor, grad_input: Tensor,
                                   grad_weight: Tensor, grad_bias: Tensor,
                                   grad_offset: Tensor, grad_mask: Tensor,
                                   grad_output: Tensor,
                                   **geometry: int) -> None:
    """Writes the gradients of all five inputs."""
    grads = torch.ops.torchvision._deform_conv2d_backward(
        grad_output, input, weight, offset, mask, _bias(bias, weight),
        *_geometry(geometry), True)
    for out, grad in zip((grad_input, grad_weight, grad_offset, grad_mask),
                         grads):
        out.copy_(grad)
    if geometry['with_bias']:
        grad_bias.copy_(grads[4])


def _bias(bias: Tensor, weight: Tensor) -> Tensor:
    """mmcv passes an empty tensor for "no bias", torchvision wants zeros."""
    return bias if bias.numel() else weight.new_zeros(len(weight))


def _geometry(kwargs: Dict[str, int]) -> Tuple[int, ...]:
    names = ('stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h',
             'dilation_w', 'group', 'deformable_group')
    return tuple(kwargs[name] for name in names)


def sigmoid_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor,
                               output: Tensor, gamma: float,
                               alpha: float) -> None:
    """Loss of logits (N, C) per element; ``target`` C means background."""
    output.copy_(_focal_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor,
                                grad_input: Tensor, gamma: float,
                                alpha: float) -> None:
    """Writes the gradient of the summed loss."""
    with torch.enable_grad():
        x = input.detach().requires_grad_()
        loss = _focal_loss(x, target, weight, gamma, alpha).sum()
        grad_input.copy_(torch.autograd.grad(loss, x)[0])


def _focal_loss(input: Tensor, target: Tensor, weight: Tensor, gamma: float,
                alpha: float) -> Tensor:
    hit = F.one_hot(target, input.size(1) + 1)[:, :-1].bool()
    p = input.sigmoid()
    positive = -alpha * (1 - p)**gamma * F.logsigmoid(input)
    negative = -(1 - alpha) * p**gamma * F.logsigmoid(-input)
    loss = torch.where(hit, positive, negative)
    return loss * weight[target, None] if weight.numel() else loss


def ms_deform_attn_forward(value: Tensor, shapes: Tensor, starts: Tensor,
                           locations: Tensor, weights: Tensor,
                           im2col_step: int) -> Tensor:
    """Multi-scale deformable attention (N, queries, dims) by grid sampling.

    mmcv's own CPU path, which it does not take on a GPU by itself.
    """
    from mmcv.ops.multi_scale_deform_attn import \
        multi_scale_deformable_attn_pytorch
    return multi_scale_deformable_attn_pytorch(value, shapes, locations,
                                               weights)


def ms_deform_attn_backward(value: Tensor, shapes: Tensor, starts: Tensor,
                            locations: Tensor, weights: Tensor,
                            grad_output: Tensor, grad_value: Tensor,
                            grad_locations: Tensor, grad_weights: Tensor,
                            im2col_step: int) -> None:
    """Writes the gradients of values, sampling locations and weights."""
    with torch.enable_grad():
        inputs = [t.detach().requires_grad_()
                  for t in (value, locations, weights)]
        out = ms_deform_attn_forward(inputs[0], shapes, starts, inputs[1],
                                     inputs[2], im2col_step)
        grads = torch.autograd.grad(out, inputs, grad_output)
    for out, grad in zip((grad_value, grad_locations, grad_weights), grads):
        out.copy_(grad)


def get_compiler_version() -> str:
    """What environment reports print."""
    return 'none (vim_mm stand-in on torchvision operators)'


def get_compiling_cuda_version() -> str:
    """What environment reports print."""
    return 'none (vim_mm stand-in on torchvision operators)'


STAND_IN_OPS = {
    op.__name__: op
    for op in (nms, softnms, roi_align_forward, roi_align_backward,
               roi_pool_forward, roi_pool_backward,
               modulated_deform_conv_forward, modulated_deform_conv_backward,
               sigmoid_focal_loss_forward, sigmoid_focal_loss_backward,
               ms_deform_attn_forward, ms_deform_attn_backward,
               get_compiler_version, get_compiling_cuda_version)
}
