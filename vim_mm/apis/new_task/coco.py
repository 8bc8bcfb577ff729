# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Boxes in COCO's format: one json for each split, or one to be split."""

import json
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

from .coco_file import CocoFile
from .own_data import (SPLIT_NOTE, OwnData, OwnDataError, Split, check_classes,
                       check_readable, held_out, median_size, short)


def read_coco(files: Sequence[Path], folders: Sequence[Path]) -> OwnData:
    """Read and check boxes.

    Args:
        files (Sequence[Path]): The json to learn from and the one to judge
            by, or one for both, which is split.
        folders (Sequence[Path]): Where images are, one for both or one each;
            looked for if there are none.

    Raises:
        FileNotFoundError: If a file or an image does not exist.
        OwnDataError: If something cannot be learned from.
    """
    if len(files) > 2 or len(folders) > 2:
        raise OwnDataError('--coco takes one json, or one to learn from and '
                           'one to judge by, and --images as many folders.')
    several = len(folders) == len(files) == 2
    parts = [CocoFile(path, folders[index:index + 1] if several else folders)
             for index, path in enumerate(files)]
    check_readable(image for part in parts for image in part.files)
    for part in parts:
        part.check()
    train, val = parts[0], parts[-1]
    classes = [name for name in train.names.values() if name in train.boxes]
    data = OwnData(
        kind='det',
        classes=check_classes(classes, str(train.path)),
        train=Split(_dataset(train), len(train.images)),
        val=Split(_dataset(val), len(val.images)),
        size=median_size(train.files),
        licence=_licence(train.data))
    for part in parts:
        data.notes += part.notes
    if len(parts) == 1:
        _split(data, train)
    else:
        _check_val(data, train, val)
        for name, split, part in (('train.json', data.train, train),
                                  ('val.json', data.val, val)):
            if part.completed:
                data.files[name] = json.dumps(part.data)
                split.dataset['ann_file'] = Path(name)
    unused = [name for name in train.names.values() if name not in classes]
    if unused:
        data.notes.append(f'Classes without a box in {train.path.name} are '
                          f'left out: {short(unused)}.')
    return data


def _split(data: OwnData, part: CocoFile) -> None:
    images = list(part.images.values())
    if len(images) < 2:
        raise OwnDataError(f'{part.path} has one image, and one more is '
                           'needed to judge by; add some.')
    for split, name, chosen in zip((data.train, data.val),
                                   ('train.json', 'val.json'),
                                   held_out(images)):
        data.files[name] = part.part(chosen)
        split.num = len(chosen)
        split.dataset = dict(split.dataset, ann_file=Path(name))
    data.notes.append(SPLIT_NOTE)


def _check_val(data: OwnData, train: CocoFile, val: CocoFile) -> None:
    known = [name for name in val.names.values() if name in data.classes]
    lacking = [name for name in data.classes if name not in known]
    if lacking:
        raise OwnDataError(
            f'{val.path} does not list the categories {short(lacking)} of '
            f'{train.path}, so mmdet would number classes otherwise; let both '
            'list all of them, in the same order.')
    if known != data.classes:
        raise OwnDataError(
            f'{val.path} lists the categories of {train.path} in another '
            'order, by which mmdet numbers them; let both list them alike.')
    new = [name for name in val.boxes if name not in data.classes]
    if new:
        data.notes.append(f'Classes of {val.path.name} that {train.path.name} '
                          f'has no box of are not judged: {short(new)}.')
    same = {path.resolve() for path in train.files} & {
        path.resolve() for path in val.files}
    if same:
        data.notes.append(f'{len(same)} images are in both files, so results '
                          'will look too good.')


def _dataset(part: CocoFile) -> Dict[str, Any]:
    return dict(ann_file=part.path, data_prefix=dict(img=part.folder))


def _licence(data: Dict[str, Any]) -> Optional[str]:
    """Names of the licences that a json lists."""
    listed = data.get('licenses')
    names = [str(each.get('name') or each.get('url') or '').strip()
             for each in listed if isinstance(each, dict)] if isinstance(
                 listed, list) else []
    return ' AND '.join(dict.fromkeys(filter(None, names))) or None
