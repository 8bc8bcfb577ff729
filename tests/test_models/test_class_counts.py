# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Labels of a batch are compared with the head that learns them."""

from types import SimpleNamespace

import pytest
import torch
from mmdet.structures import DetDataSample, ReIDDataSample
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from torch import nn

from _tiny import KINDS, Pictures, build_model, fusion_neck, vit
from vim_mm.models.class_counts import (check_head, check_labels, class_counts,
                                        main_heads)

HEADS = dict(cls='head', det='bbox_head', seg='decode_head')


def head(num: int, name: str = 'head', **more: object) -> nn.Module:
    model, part = nn.Module(), nn.Module()
    part.num_classes = num
    for key, value in more.items():
        setattr(part, key, value)
    setattr(model, name, part)
    return model


def batch(*samples: object) -> dict:
    return dict(inputs=[torch.zeros(3, 4, 4)] * len(samples),
                data_samples=list(samples))


def of_map(values: list) -> SegDataSample:
    data = torch.tensor(values).expand(1, 4, 4).clone()
    return SegDataSample(gt_sem_seg=PixelData(data=data))


def boxes(*labels: int, box: tuple = (0., 0., 1., 1.)) -> DetDataSample:
    return DetDataSample(
        gt_instances=InstanceData(
            bboxes=torch.tensor([box] * len(labels)).reshape(-1, 4),
            labels=torch.tensor(labels, dtype=torch.long)))


@pytest.mark.parametrize('kind', KINDS)
def test_the_heads_of_each_kind(kind: str) -> None:
    model = build_model(kind, dict(trunk=vit()), fusion_neck(kind))
    (name, part), = main_heads(model)
    assert name == HEADS[kind] and part is getattr(model, name)
    assert check_labels(model, Pictures(kind).batch())


def test_heads_inside_and_in_stages() -> None:
    model = nn.Module()
    model.roi_head = head(3, 'bbox_head')
    model.roi_head.bbox_head = nn.ModuleList(
        [head(3).head, head(3).head])
    model.auxiliary_head = head(2).head  # tells edges, say
    names = [name for name, _ in main_heads(model)]
    assert names == ['roi_head.bbox_head'] * 2


@pytest.mark.parametrize(('samples', 'labelled'), [
    ([DataSample().set_gt_label(1)], True),
    ([DataSample().set_gt_label([0, 1])], True),  # several
    ([DataSample().set_gt_label([])], False),
    ([of_map([0, 1, 255, 255])], True),
    ([of_map([255] * 4)], False),
    ([of_map([255] * 4), of_map([1] * 4)], True),
    ([boxes(0, 1)], True),
    ([boxes()], False),
    # of no plain form: unknown
    ([DataSample()], True),
    ([ReIDDataSample().set_gt_label(7)], True),
    ([object()], True),
])
def test_what_fits(samples: list, labelled: bool) -> None:
    assert check_labels(head(2), batch(*samples)) is labelled
    stacked = dict(inputs=torch.zeros(len(samples), 3, 4, 4),
                   data_samples=samples)
    assert check_labels(head(2), stacked) is labelled


@pytest.mark.parametrize(('sample', 'words'), [
    (DataSample().set_gt_label(2), 'label 2, .* from 0 to 1; set'),
    (DataSample().set_gt_label(-1), 'label -1'),
    *[(DataSample().set_gt_label(given), r'labels \[.*, one of them twice')
      for given in ([0, 0], [1, 1], [0, 1, 0, 0])],
    (of_map([0, 1, 2, 255]), r'label 2, .* from 0 to 1 \(255 is ignored\)'),
    (of_map([0, -1, 1, 1]), 'label -1'),
    (boxes(0, 5), 'label 5'),
    (boxes(0, box=(0., 0., float('nan'), 1.)), 'a box that is not finite'),
    (boxes(0, box=(0., 0., float('inf'), 1.)), 'a box that is not finite'),
    (SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, 2, 4))),
     'label map of 2x4 px, and as .* 4x4 px'),
])
def test_what_does_not_fit(sample: object, words: str) -> None:
    sample.set_metainfo(dict(img_path='a/b.png', img_id=3))
    with pytest.raises(ValueError, match=f'image a/b.png has .*{words}'):
        check_labels(head(2), batch(sample))


def test_the_ignored_label_is_the_heads() -> None:
    sample = of_map([0, 1, 9, 9])
    assert check_labels(head(2, ignore_index=9), batch(sample))
    with pytest.raises(ValueError, match='label 255'):
        check_labels(head(2, ignore_index=9), batch(of_map([255] * 4)))


@pytest.mark.parametrize('data', [
    None, [1], {}, dict(data_samples={}), dict(data_samples=None)])
def test_other_batches_are_left_alone(data: object) -> None:
    assert check_labels(head(2), data)
    assert check_labels(nn.Linear(1, 1), batch(boxes(9)))


@pytest.mark.parametrize(('meta', 'counts'), [
    (None, ()), ({}, ()), (dict(classes=('a', 'b')), (2, )),
    (dict(thing_classes=['a'], classes=['a', 'b'], palette=[1]), (2, 1)),
    (dict(classes='names.txt'), ()),
])
def test_classes_of_a_data_set(meta: object, counts: tuple) -> None:
    dataset = SimpleNamespace(metainfo=meta)
    assert class_counts(dataset) == counts
    check_head(head(2), dataset)
    if counts:
        with pytest.raises(ValueError, match='`model.head` is built for 0 '):
            check_head(head(0), dataset)


@pytest.mark.parametrize('kind', ['Auxiliary', 'STDCHead'])
def test_heads_beside_the_main_one(kind: str) -> None:
    model = head(3, 'decode_head')
    model.auxiliary_head = nn.ModuleList([type(kind, (nn.Module, ), {})()])
    model.auxiliary_head[0].num_classes = 2
    dataset = SimpleNamespace(metainfo=dict(classes=list('abc')))
    if kind == 'STDCHead':  # which tells edges
        check_head(model, dataset)
        return
    with pytest.raises(ValueError, match='`model.auxiliary_head` is built'):
        check_head(model, dataset)
