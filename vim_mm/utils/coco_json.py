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
from typing import Any, Callable, Dict, Iterator, List, Sequence

from mmengine.logging import print_log

from .coco_boxes import CocoFile, check_boxes
from .import_hooks import while_importing
from .messages import short

#: Where files of COCO and of LVIS are read.
_READERS = (('pycocotools.coco', 'COCO'), ('lvis', 'LVIS'))


@contextmanager
def checked_coco() -> Iterator[Dict[str, CocoFile]]:
    """Within, a COCO json that contradicts itself is refused as it is read.

    Yields:
        dict[str, CocoFile]: Filled with the files that are read, by path.

    Raises:
        ValueError: See :func:`check_coco`.
    """
    read: Dict[str, CocoFile] = {}

    def look(path: str, data: dict) -> None:
        read[path] = check_coco(path, data)

    with _looking(look):
        yield read


@contextmanager
def judging_coco() -> Iterator[None]:
    """Within, a COCO json is read to judge by it."""
    with _looking(_check_judged):
        yield


@contextmanager
def _looking(look: Callable[[str, dict], None]) -> Iterator[None]:
    """Within, a function is called with the path and content of each file."""
    with ExitStack() as changed:
        for module, name in _READERS:
            changed.enter_context(
                while_importing(module,
                                partial(_watch, changed, module, name, look)))
        yield


def _watch(changed: ExitStack, module: str, name: str,
           look: Callable[[str, dict], None]) -> None:
    """Let a class look at what it has read, until the stack is left."""
    reader = getattr(sys.modules[module], name)
    original = reader.__init__

    @wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        path = next(iter([*args, *kwargs.values()]), None)
        if path is not None:
            look(path, self.dataset)

    reader.__init__ = init
    changed.callback(setattr, reader, '__init__', original)


def check_coco(path: str, data: Dict[str, Any]) -> CocoFile:
    """Refuse a file whose annotations would be lost or misread.

    Categories that a run does not name are no concern of this.

    Args:
        path (str): The file.
        data (dict): Its content, which pycocotools has taken.

    Returns:
        CocoFile: What :func:`check_corners` and :func:`check_numbers` ask.

    Raises:
        ValueError: If two entries have one id, annotations name images or
            categories that are not listed, or all are crowds.
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
    found = CocoFile(data.get('categories') or [])
    check_boxes(path, data.get('images') or [], annotations, found)
    return found


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


def _check_judged(path: str, data: Dict[str, Any]) -> None:
    """Look at what metrics read, and data sets do without."""
    images = data.get('images') or []
    of_lvis = any('neg_category_ids' in each for each in images)
    for each in () if of_lvis else data.get('annotations') or ():
        lacking = [key for key in ('area', 'iscrowd') if key not in each]
        if 'bbox' in each and lacking:
            raise ValueError(
                f'The annotation {short(each.get("id"))} of {path} has no '
                f'`{lacking[0]}`, which metrics read; give each annotation '
                'one (`iscrowd` 0 where a box is of one object, `area` its '
                'width times height).')
    _say_lost_id(path, data)


def _say_lost_id(path: str, data: Dict[str, Any]) -> None:
    """Name the box whose id metrics take for that of none."""
    annotations = data.get('annotations') or []
    lost = next((each for each in annotations if each.get('id') in (0, '0')
                 and not each.get('iscrowd')), None)
    if lost is not None and 'bbox' in lost:
        category = lost.get('category_id')
        alike = sum(each.get('category_id') == category
                    for each in annotations)
        _warn(f'{path} numbers its annotations from 0, which metrics take for '
              f'"no match": of the {alike} boxes of the category '
              f'{short(category)} one counts as missed, and what finds it as '
              'a false alarm; number them from 1.')


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


def _warn(said: str) -> None:
    print_log(said, logger='current', level=logging.WARNING)
