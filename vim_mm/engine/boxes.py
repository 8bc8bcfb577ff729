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

from .data_sets import infos, named, parts_of

#: Most images whose boxes are looked at.
_LOOKED_AT = 2_000
#: An object of so many pixels has an outline that goes beyond one.
_SMALLEST = 4
#: Share of boxes without a size that no file has by chance.
_MANY = 0.25


def check_boxes(dataset: Any) -> None:
    """Refuse a data set whose boxes are no corners x1, y1, x2, y2.

    Args:
        dataset (Dataset): As a loader has it.

    Raises:
        ValueError: If many end before they begin, one is not finite, or
            outlines are in shares of an image's sides.
    """
    for part in parts_of(dataset):
        _check_outlines(part)
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


def _check_outlines(dataset: BaseDataset) -> None:
    """Refuse polygons from 0 to 1 of objects that are larger than a pixel."""
    far, wide = 0., 0.
    for info in infos(dataset, _LOOKED_AT):
        for each in _instances(info):
            outline = each.get('mask')
            if not isinstance(outline, (list, tuple)):
                continue
            numbers = [x for part in outline for x in np.ravel(part)]
            far = max([far, *numbers])
            box = each.get('bbox') or [0.] * 4
            wide = max(wide, box[2] - box[0], box[3] - box[1])
    if 0 < far <= 1 < _SMALLEST < wide:
        raise ValueError(
            f'No outline of {named(dataset)} goes beyond {far:.3g}, and its '
            f'boxes are up to {wide:.4g} px wide or high: outlines are in '
            "shares of the image's sides; give them in pixels.")


def _instances(info: dict) -> List[dict]:
    found = info.get('instances')
    return [each for each in found if isinstance(each, dict)] if isinstance(
        found, list) else []


def _first(boxes: np.ndarray, which: np.ndarray) -> List[float]:
    return boxes[which.argmax()].tolist()


def _boxes(dataset: BaseDataset) -> Iterator[List[float]]:
    """Plain boxes that are learned from."""
    for info in infos(dataset, _LOOKED_AT):
        for each in _instances(info):
            box = each.get('bbox')
            if box is not None and len(box) == 4 and not each.get(
                    'ignore_flag'):
                yield box
