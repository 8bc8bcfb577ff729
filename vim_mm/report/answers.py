# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A model's answer about one image, and whether it is right."""

from typing import List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor
from torch.utils.data import Dataset

from vim_mm.apis.results import describe, kind_of, words
from vim_mm.utils.kinds import KINDS

#: Boxes below this score are not drawn, and do not count.
SCORE = 0.3
#: A box is found by one of its class that overlaps it so far.
OVERLAP = 0.5
#: Label of pixels that belong to no class.
_IGNORED = 255


def with_truth(sample: BaseDataElement, dataset: Dataset,
               index: int) -> BaseDataElement:
    """A predicted sample whose annotation lies where its prediction does.

    Predictions are those of the image file. Annotations have gone through the
    test pipeline, which may have resized them.
    """
    kind, sample = kind_of(sample), sample.clone()
    if KINDS[kind].gt not in sample:
        return sample
    if kind == 'seg':
        size = sample.pred_sem_seg.data.shape[-2:]
        data = sample.gt_sem_seg.data
        if data.shape[-2:] != size:
            data = F.interpolate(data[None].float(), size)[0].to(data.dtype)
            sample.gt_sem_seg = type(sample.gt_sem_seg)(data=data)
    look = getattr(dataset, 'get_data_info', None)
    info = look(index) if look and kind == 'det' else {}
    if 'instances' in info:
        boxes = [b for b in info['instances'] if not b.get('ignore_flag')]
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([each['bbox'] for each in boxes],
                                dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor([each['bbox_label'] for each in boxes],
                                dtype=torch.long))
    return sample


def truth(sample: BaseDataElement, classes: Sequence[str]) -> str:
    """The annotation in words, empty if there is none."""
    kind = kind_of(sample)
    if KINDS[kind].gt not in sample:
        return ''
    if kind == 'cls':
        return ', '.join(classes[i] for i in sample.gt_label.tolist())
    if kind == 'det':
        names = [classes[i] for i in sample.gt_instances.labels.tolist()]
        return ', '.join(f'{name} x{names.count(name)}'
                         for name in dict.fromkeys(names)) or 'nothing'
    found = [i for i in labels(sample, 'gt') if i < len(classes)]
    return ', '.join(classes[i] for i in found[:5])


def answer(sample: BaseDataElement,
           classes: Sequence[str]) -> Tuple[str, Optional[bool]]:
    """The prediction in words, judged by the annotation where there is one.

    Returns:
        tuple[str, bool | None]: Of a class its name and score, of boxes how
        many are found, of a map its mean IoU on this image; and whether all
        is right, None for maps and without an annotation.
    """
    kind = kind_of(sample)
    if KINDS[kind].gt not in sample:
        return words(describe(sample, classes), SCORE), None
    if kind == 'cls':
        right = set(sample.pred_label.tolist()) == set(
            sample.gt_label.tolist())
        return words(describe(sample, classes)), right
    if kind == 'det':
        found, total, false = count_boxes(sample)
        return (f'{found} of {total} found, {false} false',
                found == total and not false)
    return f'mIoU {mean_iou(sample):.2f}', None


def count_boxes(sample: BaseDataElement) -> Tuple[int, int, int]:
    """Boxes found, boxes there are, and boxes that are none.

    Surer ones choose first; each true box is found once.
    """
    true, found = sample.gt_instances, sample.pred_instances
    found = found[found.scores > SCORE]
    found = found[found.scores.argsort(descending=True)]
    overlaps = bbox_overlaps(found.bboxes, true.bboxes)
    overlaps = overlaps * (found.labels[:, None] == true.labels)
    hits = 0
    for row in overlaps:
        if len(row) and row.max() >= OVERLAP:
            hits += 1
            overlaps[:, row.argmax()] = 0
    return hits, len(true), len(found) - hits


def mean_iou(sample: BaseDataElement) -> float:
    """Mean IoU over the classes that are in the image or are said to be."""
    true, found = (_map(sample, side) for side in ('gt', 'pred'))
    found = found[true != _IGNORED]
    true = true[true != _IGNORED]
    ious = [
        float(((true == i) & (found == i)).sum() /
              ((true == i) | (found == i)).sum())
        for i in torch.cat([true, found]).unique()
    ]
    return sum(ious) / len(ious) if ious else 0.


def labels(sample: BaseDataElement, side: str) -> List[int]:
    """Labels that a drawing shows, of the 'gt' or of the 'pred' side."""
    kind = kind_of(sample)
    field = getattr(KINDS[kind], side)
    if field not in sample:
        return []
    if kind == 'seg':
        return _map(sample, side).unique().tolist()
    if kind == 'cls':
        return sample.get(field).tolist()
    boxes = sample.get(field)
    if side == 'pred':
        boxes = boxes[boxes.scores > SCORE]
    return boxes.labels.unique().tolist()


def _map(sample: BaseDataElement, side: str) -> Tensor:
    return sample.get(getattr(KINDS['seg'], side)).data.flatten()
