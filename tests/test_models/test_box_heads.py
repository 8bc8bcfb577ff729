# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Losses of boxes get boxes, or the deltas that make them."""

import re
from typing import Any, Callable

import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import nn

from _loading import lines
from vim_mm.models import box_heads
from vim_mm.models.box_heads import check_box_losses, check_smallest
from vim_mm.registry import MODELS

RETINA = dict(type='RetinaHead', num_classes=1, in_channels=8, feat_channels=8,
              stacked_convs=1)
SHARED = dict(type='Shared2FCBBoxHead', num_classes=1, in_channels=8,
              fc_out_channels=8, roi_feat_size=1)
GIOU = dict(type='GIoULoss')


def check(head: dict, loss: dict, **more: bool) -> None:
    with DefaultScope.overwrite_default_scope('mmdet'):
        built = MODELS.build(dict(head, loss_bbox=loss, **more))
    check_box_losses(nn.ModuleDict(dict(bbox_head=built)))


@pytest.mark.parametrize('head', [RETINA, SHARED])
@pytest.mark.parametrize('loss', ['GIoULoss', 'IoULoss', 'CIoULoss'])
def test_overlaps_of_deltas_are_refused(head: dict, loss: str) -> None:
    with pytest.raises(ValueError, match=(
            f'`model.bbox_head.loss_bbox` is a {loss}, .* set '
            '`model.bbox_head.reg_decoded_bbox=True`')):
        check(head, dict(type=loss))
    check(head, dict(type=loss), reg_decoded_bbox=True)


@pytest.mark.parametrize('head', [RETINA, SHARED])
@pytest.mark.parametrize('loss', ['L1Loss', 'SmoothL1Loss'])
def test_differences_of_pixels_get_a_line(
        head: dict, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, box_heads)
    check(head, dict(type=loss))
    assert told == []
    check(head, dict(type=loss), reg_decoded_bbox=True)
    assert len(told) == 1 and f'is a {loss} of boxes in pixels' in told[0]


def test_heads_that_decode_in_their_own_way_are_left_alone() -> None:
    """GFL's is an anchor head without the setting, and decodes itself."""
    check(dict(type='GFLHead', num_classes=1, in_channels=8, feat_channels=32,
               stacked_convs=1, anchor_generator=dict(
                   type='AnchorGenerator', ratios=[1.], octave_base_scale=8,
                   scales_per_octave=1, strides=[8])), GIOU)


# ------------------------------------------------ boxes against their images

IN, PART, GONE = [2, 2, 20, 20], [20, 20, 60, 60], [40, 5, 50, 9]


def batch(*found: list, wrap: Callable = torch.tensor) -> dict:
    """One image of 32 x 24 px for each box."""
    samples = [DetDataSample(
        metainfo=dict(img_path='a.png'), gt_instances=InstanceData(
            bboxes=wrap([box]) if box else torch.zeros(0, 4)))
               for box in found]
    return dict(inputs=[torch.zeros(3, 24, 32, dtype=torch.uint8)] * len(
        found), data_samples=samples)


@pytest.mark.parametrize('wrap', [torch.tensor, HorizontalBoxes])
@pytest.mark.parametrize(('found', 'said'), [
    ([IN] * 4, None), ([IN, IN, PART, PART], None), ([[], []], None),
    ([[2, 2, 32, 24]] * 4, None), ([[5, -2, 34, 26]] * 4, None),
    ([[32, 3, 32, 9]] * 4, None),  # clipped, and not left out
    ([IN, PART, PART, PART], '4 boxes .* 3 reach out .*, 0 of them .* '
     r"such as \[20.*60.*\] in 'a.png', of 32 x 24 px: .*`gt_bboxes`"),
    ([IN, IN, IN, GONE], '1 of them lie outside altogether'),
    # images of half the size
    ([[9, 3, 25, 19], [22, 9, 38, 25], [45, 11, 61, 27], [4, 15, 20, 31]],
     '3 reach out .*, 1 of them'),
    ([GONE], 'Of 1 boxes .* 1 of them lie'),
    ([IN, [5, 30, 9, 40], [-9, 2, -3, 9], GONE], ValueError),
])
def test_boxes_outside_of_their_images(
        found: list, said: Any, wrap: Callable,
        monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, box_heads)
    if said is ValueError:
        with pytest.raises(ValueError, match='Of 4 boxes .* 3 reach .* 3 of'):
            check_smallest(nn.Module(), batch(*found, wrap=wrap))
        return
    check_smallest(nn.Module(), batch(*found, wrap=wrap))
    assert len(told) == (said is not None)
    assert said is None or re.search(said, told[0]), told


@pytest.mark.parametrize('data', [
    batch([*GONE, .5]), dict(batch(GONE), data_samples=None),
    dict(batch(GONE), data_samples=[DetDataSample()]), [batch(GONE)],
    dict(inputs=dict(sup=[torch.zeros(3, 9, 9)]))])
def test_what_has_no_plain_boxes(data: Any,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, box_heads)
    check_smallest(nn.Module(), data)
    assert told == []
