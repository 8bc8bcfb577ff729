# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a COCO json says against itself.

mmdet passes over annotations of images and categories that their file does not
list, and over boxes outside of their image; of two entries with one id it
takes the last. The libraries that read such files are looked at while they do,
so that no file is read twice.
"""

import logging
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any, Dict, Iterator, List, Sequence

import numpy as np
from mmengine.logging import print_log

from .import_hooks import while_importing
from .messages import short

#: Where files of COCO and of LVIS are read.
_READERS = (('pycocotools.coco', 'COCO'), ('lvis', 'LVIS'))
#: Share of the boxes that read as corners where all are.
_NEARLY_ALL = 0.99
#: Share of them that would then reach out of their images.
_MANY = 0.25


@contextmanager
def checked_coco() -> Iterator[Dict[str, List[dict]]]:
    """Within, a COCO json that contradicts itself is refused as it is read.

    Yields:
        dict[str, list[dict]]: Filled with the categories of each file that is
        read, by its path.

    Raises:
        ValueError: See :func:`check_coco`.
    """
    read: Dict[str, List[dict]] = {}
    with ExitStack() as changed:
        for module, name in _READERS:
            changed.enter_context(
                while_importing(module,
                                partial(_watch, changed, module, name, read)))
        yield read


def _watch(changed: ExitStack, module: str, name: str,
           read: Dict[str, List[dict]]) -> None:
    """Let a class look at what it has read, until the stack is left."""
    reader = getattr(sys.modules[module], name)
    original = reader.__init__

    @wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        path = next(iter([*args, *kwargs.values()]), None)
        if path is not None:
            check_coco(path, self.dataset)
            read[path] = self.dataset.get('categories') or []

    reader.__init__ = init
    changed.callback(setattr, reader, '__init__', original)


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
    keys = ('file_name', 'coco_url', 'name')
    return short(next((entry[key] for key in keys if key in entry), None))


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
    entries = {image['id']: image for image in images}.values()
    counts = Counter(
        str(image.get('file_name', image.get('coco_url')))  # of LVIS
        for image in entries)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        _warn(f'{path} lists {len(twice)} images more than once, such as '
              f'{short(twice[0])}: in each the boxes of the others are '
              'background.')


def check_numbers(path: str, categories: Sequence[dict], dataset: Any) -> None:
    """Refuse labels that stand for other classes than a data set says.

    Some data sets number the categories of a file as it lists them, whatever
    their classes are.

    Args:
        path (str): The file.
        categories (Sequence[dict]): Its categories.
        dataset (BaseDataset): What has read it.

    Raises:
        ValueError: If a label is that of another class, or of none.
    """
    labels = getattr(dataset, 'cat2label', None) or {}
    names = list((dataset.metainfo or {}).get('classes') or ())
    for each in categories if names else ():
        label, name = labels.get(each['id']), each.get('name')
        if label is None or (label < len(names) and (
                names[label] == name or name not in names)):
            continue
        own = short(names[label]) if label < len(names) else \
            f'none, as there are {len(names)}'
        raise ValueError(
            f'The category {short(name)} of {path} has the label {label}, '
            f'which by the classes of the data set is {own}; give `metainfo` '
            'all classes of the file, in its order, and let the file list '
            'each once.')


# -------------------------------------------------------------------- boxes


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
