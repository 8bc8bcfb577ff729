# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Images that a student learns from by its teacher alone.

Their samples say ``soft_only=True`` in their metainfo, and need no annotation.
"""

from typing import List, Optional, Tuple

import torch
from mmdet.structures.mask import BitmapMasks
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor
from torch.nn import ModuleList

from vim_mm.utils.kinds import SOFT_ONLY
from .heads import kind_of


def split(
    samples: Optional[List[BaseDataElement]]
) -> Tuple[Optional[List[int]], bool]:
    """Which samples of a batch a student's own losses are of.

    Args:
        samples (list, optional): Data samples of any library.

    Returns:
        tuple: Their indices, or None if these are all; and whether they count.
        If none does, the first one stands for the batch with a loss times
        zero, because every process of a group must compute a loss.
    """
    hard = [
        index for index, sample in enumerate(samples or ())
        if not sample.get(SOFT_ONLY, False)
    ]
    if len(hard) == len(samples or ()):
        return None, True
    return hard or [0], bool(hard)


def blank(student: BaseModel, sample: BaseDataElement,
          inputs: Tensor) -> BaseDataElement:
    """A sample whose annotation says nothing.

    It has no objects, no pixel of a class, or the first class.

    Args:
        student (BaseModel): The network that is to compute a loss of it.
        sample (BaseDataElement): The sample; stays as it is.
        inputs (Tensor): The batch, (B, 3, H, W).
    """
    sample, size = sample.new(), tuple(inputs.shape[-2:])
    fill = dict(cls=_blank_label, det=_blank_boxes, seg=_blank_map)
    fill[kind_of(student)](student, sample, size, inputs.device)
    return sample


def _blank_label(student, sample, size, device) -> None:
    if 'gt_score' in sample:
        del sample.gt_score
    sample.set_gt_label(torch.zeros(1, dtype=torch.long, device=device))


def _blank_boxes(student, sample, size, device) -> None:
    fields = dict(
        bboxes=torch.zeros(0, 4, device=device),
        labels=torch.zeros(0, dtype=torch.long, device=device))
    if student.with_mask:
        fields['masks'] = BitmapMasks([], *size)
    sample.gt_instances = InstanceData(**fields)
    sample.ignored_instances = InstanceData(bboxes=fields['bboxes'])


def _blank_map(student, sample, size, device) -> None:
    head = student.decode_head
    head = head[-1] if isinstance(head, ModuleList) else head
    sample.gt_sem_seg = PixelData(
        data=torch.full((1, *size), head.ignore_index, device=device))
