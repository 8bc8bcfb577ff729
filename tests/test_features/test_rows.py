# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Rows of features and the classes of patches, by hand."""

import pytest
import torch
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

from vim_mm.features.cache import CachedBatch
from vim_mm.features.rows import IGNORED, patch_labels, rows_of, thinned


def test_patches_of_a_label_map() -> None:
    seg = torch.arange(16).view(1, 4, 4)
    seg[0, 0] = 255
    sample = SegDataSample(gt_sem_seg=PixelData(data=seg))
    # centres at 2 and 6 of 8 px: beyond 4 px there is padding
    labels = patch_labels(sample, (2, 2), (8, 8))
    assert labels.tolist() == [10, IGNORED, IGNORED, IGNORED]
    labels = patch_labels(sample, (4, 4), (4, 4))
    assert labels.tolist() == [IGNORED] * 4 + list(range(4, 16))


def test_patches_in_boxes_have_the_class_of_the_smallest() -> None:
    boxes = torch.tensor([[10., 0, 20, 10], [0, 0, 40, 40]])
    sample = DataSample(
        gt_instances=InstanceData(bboxes=boxes, labels=torch.tensor([254, 0])))
    sample.set_metainfo(dict(img_shape=(40, 60)))
    labels = patch_labels(sample, (4, 6), (40, 60)).view(4, 6)
    expected = torch.zeros(4, 6).long()
    expected[:, :4] = 1
    expected[0, 1] = 255
    assert torch.equal(labels, expected)
    # padding and crowds are no background; a box counts inside a crowd
    sample.set_metainfo(dict(img_shape=(40, 50)))
    sample.ignored_instances = InstanceData(
        bboxes=torch.tensor([[30., 20, 50, 40]]), labels=torch.tensor([0]))
    labels = patch_labels(sample, (5, 6), (50, 60)).view(5, 6)
    expected = torch.cat([expected, torch.zeros(1, 6).long()])
    expected[4] = expected[:, 5] = expected[2:4, 4] = IGNORED
    assert torch.equal(labels, expected)
    empty = DataSample(gt_instances=InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long()))
    empty.set_metainfo(dict(img_shape=(8, 8)))
    assert patch_labels(empty, (2, 2), (8, 8)).tolist() == [0] * 4


def batch(samples: list, features: torch.Tensor) -> CachedBatch:
    return CachedBatch((features, ), samples,
                       torch.Size((len(samples), 3, 8, 8)))


def test_rows_of_classification() -> None:
    cached = [
        batch([DataSample().set_gt_label(v) for v in labels],
              torch.randn(len(labels), 5, 3))
        for labels in ((255, 1), (2, ))
    ]
    x, y, picture = rows_of(cached, num_extra_tokens=1)
    assert x.shape == (3, 9)
    assert y.tolist() == [255, 1, 2] and picture.tolist() == [0, 1, 2]


def test_rows_of_segmentation_and_thinning() -> None:
    seg = torch.zeros(1, 8, 8).long()
    seg[0, :4] = 255
    sample = SegDataSample(gt_sem_seg=PixelData(data=seg))
    features = torch.arange(32.).view(2, 4, 2, 2)
    cached = [batch([sample, sample], features)] * 2
    x, y, picture = rows_of(cached, 0)
    assert y.tolist() == [0] * 8
    assert picture.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert torch.equal(x[2], features[1, :, 1, 0])
    # batches of several shapes, each row against the map it is from
    wide = torch.arange(24.).view(1, 4, 2, 3)
    x, y, picture = rows_of(cached[:1] + [batch([sample], wide)] + cached, 0)
    maps = [*features, *wide, *features, *features]
    assert picture.tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert torch.equal(x, torch.cat([each[:, 1].T for each in maps]))
    x, _, picture = rows_of(cached, 0)
    few = rows_of(cached, 0, max_rows=3)
    assert [len(part) for part in few] == [3, 3, 3]
    again = rows_of(cached, 0, max_rows=3)
    assert all(torch.equal(*pair) for pair in zip(few, again))
    # what is kept are rows of the whole, with their labels and pictures
    whole = torch.cat([x, picture[:, None]], 1).tolist()
    assert all(row in whole
               for row in torch.cat([few[0], few[2][:, None]], 1).tolist())


def test_thinning_draws_from_everywhere() -> None:
    assert thinned(5, 5).tolist() == [0, 1, 2, 3, 4]
    kept = thinned(4000, 1000)
    assert len(kept.unique()) == 1000 and torch.equal(kept, kept.sort()[0])
    assert not torch.equal(kept, thinned(4000, 1000, seed=1))
    # even steps would keep one column of a grid of 4 patches
    assert torch.bincount(kept % 4).min() > 200


@pytest.mark.parametrize(('labels', 'expected'), [
    ([[0, 1], [2]], [[1, 1, 0], [0, 0, 1]]),
    ([[1], []], [[0, 1], [0, 0]]),
    ([[], []], [[0], [0]]),
])
@pytest.mark.parametrize('size', [1, 2])
def test_several_labels_or_none_are_columns(labels: list, expected: list,
                                            size: int) -> None:
    """Whatever labels share a batch."""
    samples = [
        DataSample().set_gt_label(torch.tensor(each).long())
        for each in labels
    ]
    cached = [
        batch(samples[i:i + size], torch.randn(size, 5, 3))
        for i in range(0, 2, size)
    ]
    x, y, picture = rows_of(cached, 1)
    assert y.tolist() == expected and picture.tolist() == [0, 1]
    assert x.shape == (2, 9)


def test_unknown_annotations_are_a_sentence() -> None:
    sample = DataSample(gt_caption='x')
    with pytest.raises(ValueError, match='one of gt_label, gt_inst'):
        rows_of([batch([sample], torch.randn(1, 4, 2, 2))], 0)
