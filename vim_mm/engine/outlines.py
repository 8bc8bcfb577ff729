# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Outlines of objects, polygons or run lengths, against their boxes.

A mask is learned inside of its object's box, so one that lies elsewhere is
empty there.
"""

import logging
from typing import Any, Iterator, List, Optional, Tuple

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from .data_sets import LOOKED_AT, infos, instances, named

#: An object of so many pixels has an outline that goes beyond one.
_SMALLEST = 4
#: Numbers of the smallest polygon.
_TRIANGLE = 6
#: Shares of the smaller of an outline's and an object's box in the other:
#: they belong together, and they do not.
_TOGETHER, _APART = 0.9, 0.5
#: Share of outlines that lie elsewhere which no file has by chance.
_MANY = 0.25
_NEARLY_ALL = 0.99


def check_outlines(dataset: BaseDataset) -> None:
    """Refuse a data set whose outlines are not those of its boxes.

    Args:
        dataset (BaseDataset): One that loads masks; others are left alone.

    Raises:
        ValueError: If outlines are in shares of an image's sides, x and y are
            exchanged, or many lie beside their boxes.
    """
    if not any(getattr(stage, 'with_mask', False)
               for stage in dataset.pipeline.transforms):
        return
    pairs = np.array(list(_pairs(dataset)), float).reshape(-1, 2, 4)
    if not len(pairs):
        return
    outlines, boxes = pairs[:, 0], pairs[:, 1]
    far, wide = outlines.max(), (boxes[:, 2:] - boxes[:, :2]).max()
    if 0 < far <= 1 < _SMALLEST < wide:
        raise ValueError(
            f'No outline of {named(dataset)} goes beyond {far:.3g}, and its '
            f'boxes are up to {wide:.4g} px wide or high: outlines are in '
            "shares of the image's sides; give them in pixels.")
    fits = _overlap(outlines, boxes)
    turned = _overlap(outlines[:, [1, 0, 3, 2]], boxes)
    if (fits < _TOGETHER).mean() > _MANY and \
            (turned > _TOGETHER).mean() > _NEARLY_ALL:
        raise ValueError(
            f'{_said(dataset, outlines, boxes, fits < _TOGETHER)}: the x and '
            'y of outlines are exchanged; give x before y, and run lengths of '
            'columns.')
    apart = fits < _APART
    said = (f'{_said(dataset, outlines, boxes, apart)}; give both in pixels '
            'of the same image, and of the same object.')
    if apart.mean() > _MANY:
        raise ValueError(said)
    if apart.any():
        print_log(said, logger='current', level=logging.WARNING)


def _said(dataset: BaseDataset, outlines: np.ndarray, boxes: np.ndarray,
          which: np.ndarray) -> str:
    outline, box = (each[which.argmax()].round(1).tolist()
                    for each in (outlines, boxes))
    return (f'{which.sum()} of {len(boxes)} outlines of {named(dataset)} lie '
            f'beside their boxes, such as one within {outline} (x1, y1, x2, '
            f'y2) of an object in {box}')


def _pairs(dataset: BaseDataset) -> Iterator[Tuple[List[float], List[float]]]:
    """The box of each outline, and that of its object."""
    for info in infos(dataset, LOOKED_AT):
        for each in instances(info):
            outline, box = _around(each.get('mask')), each.get('bbox')
            if outline is not None and box is not None and len(box) == 4:
                yield outline, list(box)


def _around(outline: Any) -> Optional[List[float]]:
    """The box of an outline; None of what the library refuses itself."""
    try:
        if isinstance(outline, dict):
            return _around_runs(outline)
        parts = [np.asarray(part, float).ravel() for part in outline or ()]
    except (KeyError, TypeError, ValueError):
        return None
    parts = [part for part in parts
             if len(part) >= _TRIANGLE and len(part) % 2 == 0]
    if not parts:
        return None
    points = np.concatenate(parts).reshape(-1, 2)
    return [*points.min(0), *points.max(0)]


def _around_runs(runs: dict) -> Optional[List[float]]:
    """The same of run lengths, as they are in a json."""
    from pycocotools import mask
    height, width = runs['size']
    if min(height, width) < 1:
        return None
    if isinstance(runs['counts'], list):
        runs = mask.frPyObjects(runs, height, width)
    x, y, wide, high = mask.toBbox(runs)
    return [x, y, x + wide, y + high] if wide and high else None


def _overlap(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Share of the smaller box inside of the other; a pixel more of each."""
    start = np.maximum(some[:, :2], others[:, :2])
    end = np.minimum(some[:, 2:], others[:, 2:])
    sizes = [(each[:, 2:] - each[:, :2] + 1).clip(1).prod(1)
             for each in (some, others)]
    return (end - start + 1).clip(0).prod(1) / np.minimum(*sizes)
