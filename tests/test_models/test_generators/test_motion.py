# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Annotations go where their images go."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

from vim_mm.models.generators.motion import (Motion, Move, move_images,
                                             move_sample)

MOVES = [
    Move(0, 0, False),
    Move(2, -1, False),
    Move(0, 0, True),
    Move(-3, 2, True)
]


@pytest.mark.parametrize('move', MOVES)
def test_label_maps_move_with_their_images(move):
    labels = torch.randint(5, (1, 6, 8))
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
    move_sample(sample, move, 8)
    image = labels.float().expand(3, -1, -1)[None]
    moved = move_images(image, [move])[0, :1].long()
    assert torch.equal(sample.gt_sem_seg.data, moved)


@pytest.mark.parametrize('name', ['gt_instances', 'ignored_instances'])
def test_boxes_and_masks_are_mirrored(name):
    mask = np.zeros((1, 6, 8), np.uint8)
    mask[0, 1:4, 2:5] = 1
    found = InstanceData(
        bboxes=torch.tensor([[2., 1., 5., 4.]]), masks=BitmapMasks(mask, 6, 8))
    sample = DetDataSample()
    sample.set_data({name: found})
    move_sample(sample, Move(0, 0, True), 8)
    moved = sample.get(name)
    assert moved.bboxes.tolist() == [[3., 1., 6., 4.]]
    rows, cols = np.nonzero(moved.masks.masks[0])
    assert [cols.min(), rows.min(),
            cols.max() + 1,
            rows.max() + 1] == [3, 1, 6, 4]


def test_no_boxes_are_mirrored_to_none():
    sample = DetDataSample(gt_instances=InstanceData(bboxes=torch.zeros(0, 4)))
    move_sample(sample, Move(0, 0, True), 8)
    assert sample.gt_instances.bboxes.shape == (0, 4)


def test_each_image_moves_by_itself_and_boxes_are_not_rolled():
    motion = Motion(jitter=2, flip=True)
    draw = torch.Generator().manual_seed(0)
    moves = {motion.draw(draw) for _ in range(300)}
    assert moves == {
        Move(down, right, flip)
        for down in range(-2, 3)
        for right in range(-2, 3)
        for flip in (False, True)
    }
    motion.check(DataSample())
    with pytest.raises(ValueError, match='jitter=0 for detection'):
        motion.check(DetDataSample(gt_instances=InstanceData()))
    assert not Motion()
