# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The stand-in's ops against slow, obvious references."""

import math
import os
import subprocess
import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Callable, List, Tuple

import pytest
import torch
from mmcv import ops
from mmcv.utils import ext_loader
from torch import Tensor
from torch.nn import functional as F

from vim_mm.utils.import_hooks import (OpsFinder, install_ops_finder,
                                       ops_are_stand_in)

ROOT = Path(__file__).resolve().parents[2]
needs_stand_in = pytest.mark.skipif(
    not ops_are_stand_in(), reason='mmcv has compiled ops here')


def random_boxes(n: int, seed: int = 0) -> Tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * 20
    size = torch.rand(n, 2, generator=generator) * 15
    return torch.cat([corner, corner + size],
                     1), torch.rand(n, generator=generator)


def naive_iou(a: List[float], b: List[float], offset: int) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    inter = max(width, 0) * max(height, 0)
    areas = [(x[2] - x[0] + offset) * (x[3] - x[1] + offset) for x in (a, b)]
    return inter / (sum(areas) - inter)


def naive_soft_nms(boxes: Tensor, scores: Tensor, decay: Callable,
                   min_score: float,
                   offset: int) -> List[Tuple[int, float]]:
    """Pick the best, decay the rest by their overlap with it, repeat."""
    left = dict(enumerate(scores.tolist()))
    boxes, kept = boxes.tolist(), []
    while left:
        best = max(left, key=left.get)
        kept.append((best, left.pop(best)))
        for i in list(left):
            left[i] *= decay(naive_iou(boxes[best], boxes[i], offset))
            if left[i] < min_score:
                del left[i]
    return kept


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.3, 0.5, 0.7])
def test_nms(offset: int, threshold: float) -> None:
    boxes, scores = random_boxes(60)
    expected = naive_soft_nms(boxes, scores, lambda iou:
                              (iou <= threshold) * 1., 1e-9, offset)
    dets, kept = ops.nms(boxes, scores, threshold, offset=offset)
    assert kept.tolist() == [i for i, _ in expected]
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[kept])


@needs_stand_in  # mmcv's own on CPUs knows no half precision
def test_nms_takes_half_precision_and_no_boxes() -> None:
    boxes, scores = random_boxes(30)
    full = ops.nms(boxes.half().float(), scores.half().float(), 0.5)[1]
    assert torch.equal(ops.nms(boxes.half(), scores.half(), 0.5)[1], full)
    assert len(ops.nms(boxes[:0], scores[:0], 0.5)[1]) == 0


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms(method: str, offset: int) -> None:
    boxes, scores = random_boxes(40)
    decay = dict(
        naive=lambda iou: 0. if iou >= 0.3 else 1.,
        linear=lambda iou: 1 - iou if iou >= 0.3 else 1.,
        gaussian=lambda iou: math.exp(-iou * iou / 0.5))[method]
    expected = naive_soft_nms(boxes, scores, decay, 0.05, offset)
    dets, kept = ops.soft_nms(
        boxes, scores, 0.3, 0.5, 0.05, method, offset=offset)
    assert kept.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(dets[:, 4],
                               torch.tensor([s for _, s in expected]))
    assert torch.equal(dets[:, :4], boxes[kept])


def bilinear(image: Tensor, y: float, x: float) -> Tensor:
    """The value (C,) of ``image`` (C, H, W) at a point; zero far outside."""
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return image.new_zeros(len(image))
    y, x = max(y, 0.), max(x, 0.)
    y0, x0 = min(int(y), height - 1), min(int(x), width - 1)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    dy, dx = (y - y0) * (y1 > y0), (x - x0) * (x1 > x0)
    return (image[:, y0, x0] * (1 - dy) * (1 - dx) + image[:, y0, x1] *
            (1 - dy) * dx + image[:, y1, x0] * dy *
            (1 - dx) + image[:, y1, x1] * dy * dx)


def naive_roi_align(image: Tensor, rois: Tensor, size: Tuple[int, int],
                    scale: float, ratio: int, aligned: bool) -> Tensor:
    out = image.new_zeros(len(rois), image.size(1), *size)
    shift = 0.5 if aligned else 0.
    for k, roi in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (value * scale - shift for value in roi[1:])
        height, width = y2 - y1, x2 - x1
        if not aligned:
            height, width = max(height, 1.), max(width, 1.)
        cell_h, cell_w = height / size[0], width / size[1]
        ny = ratio or math.ceil(cell_h)
        nx = ratio or math.ceil(cell_w)
        for i in range(size[0]):
            for j in range(size[1]):
                points = [(y1 + cell_h * (i + (a + .5) / ny),
                           x1 + cell_w * (j + (b + .5) / nx))
                          for a in range(ny) for b in range(nx)]
                total = sum(bilinear(image[int(roi[0])], *p) for p in points)
                out[k, :, i, j] = total / max(len(points), 1)
    return out


def random_rois(dtype: torch.dtype = torch.double) -> Tensor:
    boxes, _ = random_boxes(6, seed=3)
    index = torch.tensor([0., 1., 1., 0., 1., 0.])[:, None]
    return torch.cat([index, boxes], 1).to(dtype)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('scale', [0.25, 0.5])
def test_roi_align(aligned: bool, ratio: int, scale: float) -> None:
    image = torch.randn(2, 3, 12, 14, dtype=torch.double)
    rois = random_rois()
    out = ops.roi_align(image, rois, (3, 2), scale, ratio, 'avg', aligned)
    expected = naive_roi_align(image, rois, (3, 2), scale, ratio, aligned)
    torch.testing.assert_close(out, expected)


def test_roi_align_gradient() -> None:
    rois = random_rois()
    image = torch.randn(
        2, 2, 6, 7, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: ops.roi_align(x, rois, 2, 0.25, 2, 'avg', True), image)


@needs_stand_in
def test_roi_align_refuses_max_with_a_sentence() -> None:
    with pytest.raises(NotImplementedError, match='pool_mode="max".*avg'):
        ops.roi_align(torch.ones(2, 1, 8, 8), random_rois(torch.float), 2,
                      1., 2, 'max', True)


@needs_stand_in  # mmcv has none for CPUs
def test_roi_pool_and_its_gradient() -> None:
    # whole cells: pooling is the maximum of a plain slice
    image = torch.randn(
        1, 2, 8, 8, dtype=torch.double, requires_grad=True)
    rois = torch.tensor([[0., 0, 0, 7, 7], [0, 2, 4, 5, 7]],
                        dtype=torch.double)
    out = ops.roi_pool(image, rois, (2, 2), 1.)
    assert torch.equal(out[0, :, 0, 1], image[0, :, :4, 4:].amax((1, 2)))
    assert torch.equal(out[1, :, 1, 0], image[0, :, 6:8, 2:4].amax((1, 2)))
    assert torch.autograd.gradcheck(
        lambda x: ops.roi_pool(x, rois, (2, 2), 1.), image)


def naive_deform_conv(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor,
                      bias: Tensor) -> Tensor:
    """Stride 1, padding 1, 3x3, one group: a sum over displaced taps."""
    n, _, height, width = x.shape
    out = bias.view(1, -1, 1, 1).repeat(n, 1, height, width)
    for b in range(n):
        for i in range(height):
            for j in range(width):
                for tap in range(9):
                    dy, dx = offset[b, 2 * tap:2 * tap + 2, i, j].tolist()
                    y, z = i - 1 + tap // 3 + dy, j - 1 + tap % 3 + dx
                    value = padded_bilinear(x[b], y, z)
                    out[b, :, i, j] += weight[:, :, tap // 3, tap % 3] @ (
                        value * mask[b, tap, i, j])
    return out


def padded_bilinear(image: Tensor, y: float, x: float) -> Tensor:
    """Bilinear value with zeros outside of the picture."""
    y0, x0 = math.floor(y), math.floor(x)
    value = image.new_zeros(len(image))
    for i in (y0, y0 + 1):
        for j in (x0, x0 + 1):
            if 0 <= i < image.size(1) and 0 <= j < image.size(2):
                share = (1 - abs(y - i)) * (1 - abs(x - j))
                value = value + image[:, i, j] * share
    return value


def test_modulated_deform_conv_and_its_gradient() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 4, 4, dtype=torch.double)
    offset = torch.randn(1, 18, 4, 4, dtype=torch.double)
    mask = torch.rand(1, 9, 4, 4, dtype=torch.double)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.double)
    bias = torch.randn(3, dtype=torch.double)
    args = (x, offset, mask, weight, bias)
    out = ops.modulated_deform_conv2d(*args, 1, 1)
    torch.testing.assert_close(out, naive_deform_conv(*args))
    args = tuple(t.requires_grad_() for t in args)
    assert torch.autograd.gradcheck(
        lambda *a: ops.modulated_deform_conv2d(*a, 1, 1), args, fast_mode=True)
    no_bias = ops.modulated_deform_conv2d(*args[:4], None, 1, 1)
    torch.testing.assert_close(no_bias + args[4].view(1, -1, 1, 1), out)


@needs_stand_in
@pytest.mark.parametrize('weighted', [True, False])
def test_sigmoid_focal_loss_and_its_gradient(weighted: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, dtype=torch.double, requires_grad=True)
    target = torch.tensor([0, 2, 1, 2, 0])
    weight = torch.rand(3, dtype=torch.double) if weighted else None
    loss = ops.sigmoid_focal_loss(x, target, 2.0, 0.25, weight, 'none')
    for i, c in ((0, 0), (0, 1), (3, 2), (4, 1)):
        p = 1 / (1 + math.exp(-x[i, c].item()))
        expected = (-0.25 * (1 - p)**2 * math.log(p) if target[i] == c else
                    -0.75 * p**2 * math.log(1 - p))
        expected *= float(weight[target[i]]) if weighted else 1
        assert loss[i, c].item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(
        lambda y: ops.sigmoid_focal_loss(y, target, 2.0, 0.25, weight, 'none'),
        x)


@needs_stand_in
def test_focal_loss_of_background_has_no_positive_class() -> None:
    x = torch.randn(2, 3)
    loss = ops.sigmoid_focal_loss(x, torch.tensor([3, 3]), 2.0, 0.25, None,
                                  'none')
    p = x.sigmoid()
    torch.testing.assert_close(loss, -0.75 * p**2 * F.logsigmoid(-x))


@needs_stand_in
def test_ms_deform_attn_and_its_gradient() -> None:
    # the op of the GPU path, called directly
    attend = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply
    torch.manual_seed(0)
    shapes, starts = torch.tensor([[3, 4]]), torch.tensor([0])
    value = torch.randn(1, 12, 2, 3, dtype=torch.double)
    where = torch.rand(1, 5, 2, 1, 2, 2, dtype=torch.double) * 0.6 + 0.2
    weight = torch.rand(1, 5, 2, 1, 2, dtype=torch.double)
    out = attend(value, shapes, starts, where, weight, 64).view(1, 5, 2, 3)
    image = value[0, :, 1].T.reshape(3, 3, 4)
    expected = sum(
        weight[0, 4, 1, 0, p] * padded_bilinear(
            image,
            float(where[0, 4, 1, 0, p, 1]) * 3 - 0.5,
            float(where[0, 4, 1, 0, p, 0]) * 4 - 0.5) for p in range(2))
    torch.testing.assert_close(out[0, 4, 1], expected)
    inputs = [t.requires_grad_() for t in (value, where, weight)]
    assert torch.autograd.gradcheck(
        lambda v, s, w: attend(v, shapes, starts, s, w, 64),
        inputs,
        fast_mode=True)


@needs_stand_in
def test_a_missing_op_complains_when_called_only() -> None:
    ext = ext_loader.load_ext('_ext', ['carafe_forward'])
    with pytest.raises(NotImplementedError, match='"carafe_forward" needs'):
        ext.carafe_forward(1, size=2)
    with pytest.raises(AttributeError):
        ext.__path__


@needs_stand_in
def test_the_module_looks_real() -> None:
    assert find_spec('mmcv._ext').name == 'mmcv._ext'
    assert ext_loader.check_ops_exist()
    assert find_spec('mmcv._other') is None
    assert 'vim_mm' in ops.get_compiler_version()


def test_compiled_ops_are_preferred(tmp_path: Path) -> None:
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / '__init__.py').write_text('')
    (tmp_path / 'mmcv' / '_ext.py').write_text('nms = "compiled"')
    code = ('import sys; sys.path.insert(0, sys.argv[1]); import vim_mm; '
            'import mmcv._ext; assert mmcv._ext.nms == "compiled"; '
            'from vim_mm.utils.import_hooks import ops_are_stand_in; '
            'assert not ops_are_stand_in()')
    # without what stands for compiled operators in a cell of the matrix
    subprocess.run([sys.executable, '-c', code, tmp_path],
                   check=True,
                   cwd=ROOT,
                   env=dict(os.environ, PYTHONPATH=str(ROOT)))


def test_installing_twice_adds_one_finder() -> None:
    install_ops_finder()
    install_ops_finder()
    finders = [f for f in sys.meta_path if isinstance(f, OpsFinder)]
    assert len(finders) == 1
    # every real module is found before
    assert sys.meta_path.index(PathFinder) < sys.meta_path.index(finders[0])
