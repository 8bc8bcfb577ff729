# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Boxes that a data set has read, whatever the format of its files.

Files of COCO are looked at themselves (:mod:`vim_mm.utils.coco_json`), as
mmdet leaves their broken boxes out; of other formats it learns from them.
"""

import logging
from typing import Any, Iterator, List

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from .data_sets import LOOKED_AT, infos, instances, named, parts_of
from .outlines import check_outlines

#: Share of boxes without a size that no file has by chance.
_MANY = 0.25


def check_boxes(dataset: Any) -> None:
    """Refuse a data set whose boxes are no corners x1, y1, x2, y2.

    Args:
        dataset (Dataset): As a loader has it.

    Raises:
        ValueError: If many end before they begin, one is not finite, or
            outlines are of other places.
    """
    for part in parts_of(dataset):
        check_outlines(part)
        boxes = np.array(list(_boxes(part)), float).reshape(-1, 4)
        if not len(boxes):
            continue
        bad = ~np.isfinite(boxes).all(1)
        if bad.any():
            raise ValueError(
                f'A box of {named(part)} is {_first(boxes, bad)}, which is '
                'not finite, and the loss would not be either; correct its '
                'annotation.')
        flat = (boxes[:, 2:] <= boxes[:, :2]).any(1)
        said = (f'{flat.sum()} of {len(boxes)} boxes of {named(part)} end '
                'before they begin, or have no size, such as '
                f'{_first(boxes, flat)} (x1, y1, x2, y2)')
        if flat.mean() > _MANY:
            raise ValueError(
                f'{said}; give corners where their format has corners (and '
                'not the width and height), or correct them.')
        if flat.any():
            print_log(
                f'{said}; correct them, or leave them out '
                '(`FilterAnnotations`).',
                logger='current',
                level=logging.WARNING)


def _first(boxes: np.ndarray, which: np.ndarray) -> List[float]:
    return boxes[which.argmax()].tolist()


def _boxes(dataset: BaseDataset) -> Iterator[List[float]]:
    """Plain boxes that are learned from."""
    for info in infos(dataset, LOOKED_AT):
        for each in instances(info):
            box = each.get('bbox')
            if box is not None and len(box) == 4 and not each.get(
                    'ignore_flag'):
                yield box
