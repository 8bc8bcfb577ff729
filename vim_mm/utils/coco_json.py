# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a COCO json says against itself.

mmdet passes over annotations of images and categories that their file does not
list, and over boxes outside of their image; of two entries with one id it
takes the last. pycocotools is looked at while it reads, so that no file is
read twice.
"""

import logging
from collections import Counter
from contextlib import contextmanager
from functools import wraps
from typing import Any, Dict, Iterator, List, Optional

import numpy as np
from mmengine.logging import print_log

from .messages import short

#: Share of the boxes that read as corners where all are.
_NEARLY_ALL = 0.99
#: Share of them that would then reach out of their images.
_MANY = 0.25


@contextmanager
def checked_coco() -> Iterator[None]:
    """Within, a COCO json that contradicts itself is refused as it is read.

    Raises:
        ValueError: See :func:`check_coco`.
    """
    from pycocotools.coco import COCO
    original = COCO.__init__

    @wraps(original)
    def read(self: COCO, annotation_file: Optional[str] = None) -> None:
        original(self, annotation_file)
        if annotation_file is not None:
            check_coco(annotation_file, self.dataset)

    COCO.__init__ = read
    try:
        yield
    finally:
        COCO.__init__ = original


def check_coco(path: str, data: Dict[str, Any]) -> None:
    """Refuse a file whose annotations would be lost or misread.

    Categories that a run does not name are no concern of this.

    Args:
        path (str): The file.
        data (dict): Its content, which pycocotools has taken.

    Raises:
        ValueError: If two entries have one id, annotations name images or
            categories that are not listed, or boxes are corners.
    """
    annotations = data.get('annotations') or []
    for what in ('images', 'categories'):
        _check_ids(path, what, data.get(what) or [])
    parts = [part for each in annotations
             for part in each.get('segments_info') or ()]  # panoptic ones
    for key, what, holders in (
            ('image_id', 'images', annotations),
            ('category_id', 'categories', [*annotations, *parts])):
        if what in data:
            _check_named(path, key, what, data[what], holders)
    _say_listed_twice(path, data.get('images') or [])
    _check_boxes(path, data.get('images') or [], annotations)


def _check_ids(path: str, what: str, entries: List[dict]) -> None:
    seen: Dict[Any, dict] = {}
    for each in entries:
        other = seen.setdefault(each['id'], each)
        if other is not each and other != each:
            raise ValueError(
                f'{path} gives two of its {what} the id {short(each["id"])}, '
                f'{_called(other)} and {_called(each)}: only the last would '
                'count, with the annotations of both; number them anew.')


def _called(entry: dict) -> str:
    return short(entry.get('file_name', entry.get('name')))


def _check_named(path: str, key: str, what: str, listed: List[dict],
                 holders: List[dict]) -> None:
    known = {each['id'] for each in listed}
    named = [each[key] for each in holders if key in each]
    lost = [name for name in named if name not in known]
    if lost:
        raise ValueError(
            f'{len(lost)} of {len(named)} annotations of {path} name a {key} '
            f'such as {short(lost[0])}, which its {what} do not list'
            f'{_for_example(known)}: they would be left out; remove them, or '
            'export the file again.')


def _for_example(known: set) -> str:
    return f' (such as {short(next(iter(known)))})' if known else ''


def _say_listed_twice(path: str, images: List[dict]) -> None:
    counts = Counter(map(str, (image.get('file_name') for image in {
        image['id']: image for image in images}.values())))
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        _warn(f'{path} lists {len(twice)} images more than once, such as '
              f'{short(twice[0])}: in each the boxes of the others are '
              'background.')


# --------------------------------------------------------------------- boxes


def _check_boxes(path: str, images: List[dict],
                 annotations: List[dict]) -> None:
    found = [each for each in annotations if 'bbox' in each]
    sizes = {image['id']: (image.get('width'), image.get('height'))
             for image in images}
    try:
        boxes = np.array([each['bbox'] for each in found], float)
        limits = np.array([sizes[each['image_id']] for each in found], float)
        areas = np.array([each.get('area', 1) for each in found], float)
    except (TypeError, ValueError):  # which the data set says of itself
        return
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        return
    if all(each.get('iscrowd') for each in found):
        raise ValueError(
            f'All {len(found)} annotations of {path} are crowds '
            '(`iscrowd=1`), which are neither learned nor judged; set '
            '`iscrowd` to 0 where a box is of one object.')
    start, size = boxes[:, :2], boxes[:, 2:]
    if (_share(size > start) > _NEARLY_ALL
            and _share(size <= limits + 1) > _NEARLY_ALL
            and _share(start + size <= limits + 1) < 1 - _MANY):
        raise ValueError(
            f'The boxes of {path} are the corners x1, y1, x2, y2, such as '
            f'{found[0]["bbox"]}: as x, y, width and height, which they '
            'stand for, many reach out of their images; convert them.')
    inside = np.minimum(start + size, limits) - np.maximum(start, 0)
    lost = ((inside <= 0) | (size < 1)).any(1) | (areas <= 0)
    if lost.any():
        _warn(f'{lost.sum()} of {len(found)} boxes of {path}, such as '
              f'{found[lost.argmax()]["bbox"]}, are outside of their images, '
              'smaller than a pixel or of no area: they are left out.')


def _share(rows: np.ndarray) -> float:
    """Of rows that hold in both directions."""
    return float(rows.all(1).mean())


def _warn(said: str) -> None:
    print_log(said, logger='current', level=logging.WARNING)
