# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Class names of a config against those of its annotations.

The libraries drop what they do not know in silence: with the names of another
data set a detector trains for hours on images without boxes.
"""

import json
import mmap
import os
import os.path as osp
import re
from difflib import get_close_matches
from typing import Any, Iterable, Iterator, List, Optional, Sequence
from xml.etree import ElementTree

from mmengine.fileio import list_from_file

from vim_mm.registry import DATASETS
from .config import class_of

_CHUNK = 1 << 16
_NO_NUMBER = re.compile(rb'[\[,:]\s*(NaN|-?Infinity)\s*[\],}]')


def check_class_names(key: str, dataset: dict) -> None:
    """Refuse a data set whose annotations know other classes.

    Args:
        key (str): Where its config stands, for messages.
        dataset (dict): The config, with the scope of its type.

    Raises:
        ValueError: If no class of the config is found, those that are found
            would be numbered otherwise, or they are no list.
    """
    _refuse_text(key, dataset)
    own = names_of(dataset)
    if own is None:
        return
    kind = class_of(dataset, DATASETS)
    bases = [base.__name__ for base in kind.__mro__]
    if 'CocoDataset' in bases:
        _check_coco(key, dataset, kind, own)
    elif 'XMLDataset' in bases:
        _check_xml(key, dataset, own)
    elif _reads_as(kind, 'CustomDataset') and (dataset.get('data_prefix') or
                                               bases[0] == 'CustomDataset'):
        _check_folders(key, dataset, own)


def names_of(dataset: dict) -> Optional[List[str]]:
    """The class names that a data set's config gives, None if it has none.

    Args:
        dataset (dict): The config, with the scope of its type.
    """
    kind = class_of(dataset, DATASETS) if 'type' in dataset else None
    if not isinstance(kind, type):
        return None
    metainfo = {**(getattr(kind, 'METAINFO', None) or {}),
                **(dataset.get('metainfo') or {})}
    own = dataset.get('classes') or metainfo.get('classes')
    if isinstance(own, str) and osp.isfile(own):
        own = list_from_file(own)
    if not isinstance(own, (list, tuple)) or not own:
        return None
    return list(map(str, own))


def _refuse_text(key: str, dataset: dict) -> None:
    """Refuse one name where a list, or a file of names, is asked for."""
    own = dataset.get('classes') or (dataset.get('metainfo')
                                     or {}).get('classes')
    if isinstance(own, str) and not osp.isfile(own):
        raise ValueError(
            f"The classes of `{key}` are the text '{own}', whose letters "
            f"would be names; give a list, ['{own}'], or a file of names.")


def check_same_names(first: str, names: Sequence[str], second: str,
                     others: Sequence[str]) -> None:
    """Refuse two data sets of a run that number their classes otherwise.

    One may know more classes than the other, behind those of both.

    Args:
        first (str): Where the config of one stands.
        names (Sequence[str]): Its classes.
        second (str): Where the config of the other stands.
        others (Sequence[str]): Its classes.

    Raises:
        ValueError: If a number is that of two classes.
    """
    for index, (name, other) in enumerate(zip(names, others)):
        if name != other:
            raise ValueError(
                f"Class {index} is '{name}' in `{first}` ({_short(names)}), "
                f"and '{other}' in `{second}` ({_short(others)}); give both "
                'the same classes, in one order.')


def _reads_as(kind: type, base: str) -> bool:
    """Whether a data set reads its annotations as a class it inherits."""
    reads = getattr(kind, 'load_data_list', None)
    return getattr(reads, '__qualname__', '').startswith(f'{base}.')


def _check_coco(key: str, dataset: dict, kind: type,
                own: Sequence[str]) -> None:
    path = osp.join(
        dataset.get('data_root') or '', dataset.get('ann_file') or '')
    theirs = coco_names(path) if osp.isfile(path) else None
    if theirs is None:
        return
    found = [name for name in theirs if name in own]
    if not found:
        raise ValueError(_none(key, own, path, theirs))
    _refuse_no_numbers(path)
    # data sets that read their file in a way of their own number as they do
    if found == list(own) or not _reads_as(kind, 'CocoDataset'):
        return
    lacking = [name for name in own if name not in theirs]
    if lacking:
        raise ValueError(
            f'The file {path} has no classes {lacking}, which `{key}` names: '
            'mmdet leaves them out, and numbers those behind them otherwise '
            'than the head; name the classes that the file has, '
            f'{_short(theirs)}, in `{key}.metainfo`.')
    raise ValueError(
        f'The file {path} numbers its classes {_short(found)}, and `{key}` '
        f'{_short(own)}: mmdet goes by the file, so results would bear wrong '
        f"names; give `{key}.metainfo` the file's order.")


def _check_xml(key: str, dataset: dict, own: Sequence[str]) -> None:
    """Names of XML files, read until all classes of the config were found."""
    root = dataset.get('data_root') or ''
    path = osp.join(root, dataset.get('ann_file') or '')
    prefix = dataset.get('data_prefix') or {}
    folder = osp.join(root, prefix.get('sub_data_root', ''),
                      dataset.get('ann_subdir', 'Annotations'))
    if not osp.isfile(path):
        return
    missing, theirs = set(own), set()
    for name in _xml_names(path, folder):
        missing.discard(name)
        theirs.add(name)
        if not missing:
            return
    if theirs and missing == set(own):
        raise ValueError(_none(key, own, folder, sorted(theirs)))
    # a class may have no box, as long as no other name looks like it
    for name in sorted(missing):
        near = _meant(name, theirs - set(own))
        if near:
            raise ValueError(
                f"`{key}` names the class '{name}', which no file of {folder} "
                f"has, but '{near}', whose boxes would be left out; correct "
                f'`{key}.metainfo`.')


def _meant(name: str, others: Iterable[str]) -> Optional[str]:
    """The one of some names that this one may be misspelt for."""
    folded = {other.lower(): other for other in others}
    near = get_close_matches(name.lower(), folded, 1, 0.75)
    return folded[near[0]] if near else None


def _check_folders(key: str, dataset: dict, own: Sequence[str]) -> None:
    prefix = dataset.get('data_prefix') or {}
    if isinstance(prefix, dict):
        prefix = prefix.get('img_path', '')
    root = osp.join(dataset.get('data_root') or '', prefix)
    if not dataset.get('with_label', True):
        return
    if dataset.get('ann_file'):
        _check_lines(
            key,
            osp.join(dataset.get('data_root') or '', dataset['ann_file']), own)
        return
    if not osp.isdir(root):
        return
    theirs = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if len(theirs) != len(own):
        raise ValueError(
            f'The folder {root} holds {len(theirs)} classes, '
            f'{_short(theirs)}, and `{key}` names {len(own)}, {_short(own)}; '
            'let both agree.')
    # folders may have other names (those of ImageNet), but not some of them
    if theirs != list(own) and set(theirs) & set(own):
        raise ValueError(
            f'The folder {root} numbers its classes {_short(theirs)}, and '
            f'`{key}` {_short(own)}: mmpretrain goes by the folders, so '
            'results would bear wrong names; give `classes` their order.')


def _check_lines(key: str, path: str, own: Sequence[str]) -> None:
    """Labels of a file of lines 'IMAGE NUMBER'."""
    if not osp.isfile(path):
        return
    with open(path, encoding='utf-8', errors='replace') as lines:
        for number, line in enumerate(lines, 1):
            image, _, label = line.strip().rpartition(' ')
            if not (label.isdecimal() and int(label) < len(own)):
                raise ValueError(
                    f"Line {number} of {path} ends in the label '{label}', "
                    f'and `{key}` names {len(own)} classes, '
                    f'{_short(own)}: labels are whole numbers from 0 to '
                    f'{len(own) - 1}; correct the file or the classes.')
            folders = image.split('/')[:-1]
            other = [name for name in folders if name in own]
            if other and own[int(label)] not in folders:
                raise ValueError(
                    f"Line {number} of {path} gives '{image}' the label "
                    f"{label}, which by `{key}` is '{own[int(label)]}' and "
                    f"not '{other[-1]}'; number the file's labels as the "
                    'classes, or the classes as the file.')


def coco_names(path: str) -> Optional[List[str]]:
    """The names of a COCO file's categories, without reading all of it.

    Args:
        path (str): The file.

    Returns:
        list[str] | None: None if it lists none.
    """
    if not osp.getsize(path):
        raise ValueError(f'The annotation file {path} is empty (0 bytes); '
                         'write it again.')
    with open(path, 'rb') as file, mmap.mmap(
            file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for match in re.finditer(rb'"categories"\s*:\s*(?=\[)', data):
            listed = _decoded(data, match.end())
            if listed and all(
                    isinstance(one, dict) and 'name' in one
                    for one in listed):
                return [str(one['name']) for one in listed]
    return None


def _refuse_no_numbers(path: str) -> None:
    """Refuse boxes of NaN or infinity, which Python's JSON takes.

    Raises:
        ValueError: If there is one.
    """
    with open(path, 'rb') as file, mmap.mmap(
            file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = _NO_NUMBER.search(data)
        if found:
            value = data[found.start(1):found.end(1)].decode()
            raise ValueError(
                f'The annotation file {path} holds {value} at byte '
                f'{found.start(1)}, which is no number, and the loss would '
                'be none either; correct the box.')


def _decoded(data: mmap.mmap, start: int) -> Any:
    """The JSON value that begins at a place, None if it is damaged."""
    size = _CHUNK
    while True:
        text = data[start:start + size].decode(errors='replace')
        try:
            return json.JSONDecoder().raw_decode(text)[0]
        except ValueError:
            if start + size >= len(data):
                return None
        size *= 4


def _xml_names(path: str, folder: str) -> Iterator[str]:
    with open(path) as lines:
        for line in lines:
            file = osp.join(folder, f'{line.strip()}.xml')
            if osp.isfile(file):
                for name in ElementTree.parse(file).iterfind('object/name'):
                    yield name.text


def _none(key: str, own: Sequence[str], where: str,
          theirs: Sequence[str]) -> str:
    return (f'Of the classes that `{key}` names, {_short(own)}, {where} has '
            f'none: it has {_short(theirs)}, and not one box would be left; '
            f'set `{key}.metainfo=dict(classes=(…))`, and `num_classes` of '
            'the head.')


def _short(names: Sequence[str]) -> str:
    listed = ', '.join(names[:3])
    return f'{listed}, … ({len(names)})' if len(names) > 3 else listed
