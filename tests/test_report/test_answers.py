# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Answers in words, judged by annotations."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

from vim_mm.report.answers import (answer, count_boxes, labels, mean_iou,
                                   truth, with_truth)

NAMES = ['cat', 'dog', 'owl']


def boxes(*found, scores=None):
    instances = InstanceData(
        bboxes=torch.tensor([b[:4] for b in found]).float().reshape(-1, 4),
        labels=torch.tensor([b[4] for b in found], dtype=torch.long))
    if scores is not None:
        instances.scores = torch.tensor(scores)
    return instances


def pixels(*rows):
    return PixelData(data=torch.tensor([rows]))


@pytest.mark.parametrize(('true', 'found', 'right'), [
    ([1], [1], True), ([1], [0], False), ([0, 2], [2, 0], True),
    ([0, 2], [0], False)
])
def test_classes(true, found, right):
    sample = DataSample().set_gt_label(true).set_pred_label(found)
    said, judged = answer(sample, NAMES)
    assert judged is right and NAMES[found[0]] in said
    assert truth(sample, NAMES) == ', '.join(NAMES[i] for i in true)
    assert labels(sample, 'gt') == true
    del sample.gt_label
    assert answer(sample, NAMES)[1] is None and truth(sample, NAMES) == ''


BOX, FAR = (0, 0, 10, 10), (50, 50, 60, 60)


@pytest.mark.parametrize(('true', 'found', 'scores', 'counts'), [
    ([(*BOX, 0)], [(*BOX, 0)], [.9], (1, 1, 0)),
    ([(*BOX, 0)], [(*BOX, 1)], [.9], (0, 1, 1)),  # another class
    ([(*BOX, 0)], [(*BOX, 0)], [.1], (0, 1, 0)),  # not sure enough
    ([(*BOX, 0)], [(*BOX, 0), (*BOX, 0)], [.9, .8], (1, 1, 1)),  # twice
    ([(*BOX, 0), (*FAR, 0)], [(0, 0, 10, 9, 0)], [.9], (1, 2, 0)),
    ([(*BOX, 0)], [(0, 0, 10, 4, 0)], [.9], (0, 1, 1)),  # too small
    ([], [(*BOX, 0)], [.9], (0, 0, 1)),
    ([(*BOX, 0)], [], [], (0, 1, 0)),
    ([], [], [], (0, 0, 0)),
])
def test_boxes(true, found, scores, counts):
    sample = DetDataSample(
        gt_instances=boxes(*true),
        pred_instances=boxes(*found, scores=scores))
    assert count_boxes(sample) == counts
    said, right = answer(sample, NAMES)
    assert said == '{} of {} found, {} false'.format(*counts)
    assert right is (counts[0] == counts[1] and not counts[2])
    assert truth(sample, NAMES) == (f'cat x{len(true)}' if true else 'nothing')


def test_maps():
    sample = SegDataSample(
        gt_sem_seg=pixels([0, 0, 1, 255]), pred_sem_seg=pixels([0, 1, 1, 2]))
    # what is said where nothing is annotated does not count
    assert mean_iou(sample) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert answer(sample, NAMES) == ('mIoU 0.50', None)
    assert truth(sample, NAMES) == 'cat, dog'
    assert labels(sample, 'pred') == [0, 1, 2]
    sample.gt_sem_seg = pixels([255, 255, 255, 255])
    assert mean_iou(sample) == 0


class Annotated:
    """A data set whose pipeline has resized the annotations."""

    def get_data_info(self, index):
        assert index == 7
        return dict(instances=[
            dict(bbox=[0, 0, 10, 10], bbox_label=2, ignore_flag=0),
            dict(bbox=[0, 0, 3, 3], bbox_label=0, ignore_flag=1)
        ])


def test_truth_lies_where_predictions_do():
    sample = DetDataSample(
        gt_instances=boxes((0, 0, 5, 5, 2)),
        pred_instances=boxes((*BOX, 2), scores=[.9]))
    found = with_truth(sample, Annotated(), 7)
    assert found.gt_instances.bboxes.tolist() == [list(map(float, BOX))]
    assert answer(found, NAMES)[1] is True
    assert sample.gt_instances.bboxes[0, 2] == 5  # a copy
    # without the data set's word the sample's own counts
    assert len(with_truth(sample, [], 7).gt_instances) == 1
    maps = SegDataSample(
        gt_sem_seg=pixels([0, 1]),
        pred_sem_seg=PixelData(data=torch.zeros(1, 2, 4).long()))
    grown = with_truth(maps, [], 0).gt_sem_seg.data
    assert grown.tolist() == [[[0, 0, 1, 1]] * 2]
    assert grown.dtype == torch.long
