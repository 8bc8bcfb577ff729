# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Boxes of COCO files that are none, or the corners of some."""

import logging
from dataclasses import dataclass
from numbers import Real
from typing import Iterable, List

import numpy as np
from mmengine.logging import print_log

from .messages import short

#: Share of the boxes that read as corners where all are.
_NEARLY_ALL = 0.99
#: Share of them that would then reach out of their images.
_MANY = 0.25
#: Share of its side that a box which is padded, or of an object that is cut
#: off, seldom has outside; so many of them, and that share of all, are more.
_FAR = 0.25
_FEW, _SOME = 2, 0.1


@dataclass
class CocoFile:
    """What is known of a file that was read.

    Attributes:
        categories (list[dict]): Those that it lists.
        corners (str): Why its boxes look like corners; empty if they do not.
        sure (bool): Whether they can be nothing else.
    """
    categories: List[dict]
    corners: str = ''
    sure: bool = False


def check_corners(files: Iterable[CocoFile]) -> None:
    """Refuse files whose boxes are corners, once sizes of images are known.

    With wrong sizes right boxes may look like corners.

    Args:
        files (Iterable[CocoFile]): What was read.

    Raises:
        ValueError: If they can be nothing else; a line where they may be.
    """
    for file in files:
        if file.sure:
            raise ValueError(f'{file.corners}; convert them, or correct '
                             'the sizes of the images if those are wrong.')
        if file.corners:
            _warn(f'{file.corners}; convert them if they are.')


def check_boxes(path: str, images: List[dict], annotations: List[dict],
                file: CocoFile) -> None:
    """Refuse boxes that are none, name those that are left out.

    Args:
        path (str): The file.
        images (list[dict]): Its images.
        annotations (list[dict]): Its annotations.
        file (CocoFile): Takes what :func:`check_corners` asks.

    Raises:
        ValueError: If one is no list of four numbers, or all are crowds.
    """
    found = [each for each in annotations if 'bbox' in each]
    lacking = next((each for each in annotations if 'bbox' not in each), None)
    if found and lacking is not None:
        raise ValueError(f'The annotation {short(lacking.get("id"))} of {path}'
                         ' has no `bbox`, as others have; give it one, or '
                         'take it out.')
    sizes = {image['id']: (image.get('width'), image.get('height'))
             for image in images}
    try:
        boxes = np.array([each['bbox'] for each in found], float)
        limits = np.array([sizes[each['image_id']] for each in found], float)
        areas = np.array([each.get('area', 1) for each in found], float)
    except (TypeError, ValueError):  # which the data set says of itself
        return _check_four(path, found)
    # where there is none, numpy reads NaN
    if boxes.ndim != 2 or boxes.shape[1] != 4 or np.isnan(boxes).any():
        return _check_four(path, found)
    if all(each.get('iscrowd') for each in found):
        raise ValueError(
            f'All {len(found)} annotations of {path} are crowds '
            '(`iscrowd=1`), which are neither learned nor judged; set '
            '`iscrowd` to 0 where a box is of one object.')
    start, size = boxes[:, :2], boxes[:, 2:]
    _look_for_corners(path, found, boxes, limits, file)
    inside = np.minimum(start + size, limits) - np.maximum(start, 0)
    lost = ((inside <= 0) | (size < 1)).any(1) | (areas <= 0)
    if lost.any():
        _warn(f'{lost.sum()} of {len(found)} boxes of {path}, such as '
              f'{found[lost.argmax()]["bbox"]}, are outside of their images, '
              'smaller than a pixel or of no area: they are left out.')


def _check_four(path: str, found: List[dict]) -> None:
    """Name a box that is no list of four numbers."""
    for each in found:
        box = each['bbox']
        if not isinstance(box, list) or len(box) != 4 or not all(
                isinstance(number, Real) for number in box):
            raise ValueError(
                f'The box {short(box)} of {path}, in the annotation '
                f'{short(each.get("id"))}, is no list of four numbers, x, y, '
                'width and height; correct it, or take the annotation out.')


def _look_for_corners(path: str, found: List[dict], boxes: np.ndarray,
                      limits: np.ndarray, file: CocoFile) -> None:
    """Note in a file whether its boxes fit as corners, and as boxes do not.

    Those of large objects can be both: they begin near the first corner of
    their images, and a padded one reaches some pixels out.
    """
    start, size = boxes[:, :2], boxes[:, 2:]
    beyond = start + size - limits
    out = (beyond > 1).any(1)
    fit = ((start >= -1) & (size > start) & (size <= limits + 1)).all(1)
    if fit.mean() <= _NEARLY_ALL or out.mean() <= _MANY:
        return
    far = (beyond > _FAR * size).any(1)
    file.sure = bool(far.sum() > _FEW + _SOME * len(far))
    file.corners = (
        f'The boxes of {path} {"are" if file.sure else "may be"} the corners '
        f'x1, y1, x2, y2, such as {found[out.argmax()]["bbox"]}: as x, y, '
        f'width and height, which they stand for, {out.sum()} of {len(out)} '
        'reach out of their images')


def _warn(said: str) -> None:
    print_log(said, logger='current', level=logging.WARNING)
