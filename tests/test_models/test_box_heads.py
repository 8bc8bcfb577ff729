# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Losses of boxes get boxes, or the deltas that make them."""

import pytest
from mmengine.registry import DefaultScope
from torch import nn

from _loading import lines
from vim_mm.models import box_heads
from vim_mm.models.box_heads import check_box_losses
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
