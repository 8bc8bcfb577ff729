# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Images in a folder per class, in two splits or to be split."""

from pathlib import Path
from typing import Any, Dict, List

from .own_data import (SPLIT_NOTE, OwnData, OwnDataError, Split, check_classes,
                       check_images, check_readable, held_out, images_in,
                       median_size, short, split_folders)

#: Suffixes that mmpretrain takes unless it is told others.
USUAL = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif')
ByClass = Dict[str, List[Path]]


def read_folders(root: Path) -> OwnData:
    """Read and check a folder of classes, or of two splits of them.

    Args:
        root (Path): It holds a folder for each class, or folders ``train``
            and ``val`` that do.

    Raises:
        FileNotFoundError: If there is no such folder.
        OwnDataError: If something cannot be learned from.
    """
    splits = split_folders(root)
    by_split = [_by_class(folder) for folder in splits or (root, )]
    train, val = by_split[0], by_split[-1]
    names = check_classes(list(train), str(root))
    if len(names) < 2:
        raise OwnDataError(f'{root} holds one class, {names[0]}, and two or '
                           'more are told apart; give the folder that holds '
                           'all of them.')
    if list(val) != names:
        odd = sorted(set(val) ^ set(names))
        raise OwnDataError(f'{splits[0]} and {splits[1]} do not hold the same '
                           f'classes: one lacks {short(odd)}; let both have '
                           'the same folders.')
    check_readable(path for by_class in by_split
                   for paths in by_class.values() for path in paths)
    if splits is None:
        return _split(root, train)
    parts = [
        Split(
            dict(data_prefix=folder, **_extensions(by_class)),
            sum(map(len, by_class.values())))
        for folder, by_class in zip(splits, (train, val))
    ]
    return OwnData('cls', names, *parts, median_size(sum(train.values(), [])))


def _by_class(root: Path) -> ByClass:
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    odd = [path for path in folders if path.name.startswith(('.', '__'))]
    if odd:
        raise OwnDataError(f'The folder {odd[0]} would be taken for a class; '
                           'delete it, or move it elsewhere.')
    if not folders:
        raise OwnDataError(f'{root} holds no folders, and each class has one; '
                           'put its images there.')
    found = {folder.name: images_in(folder) for folder in folders}
    for name, paths in found.items():
        check_images(paths, f'The class folder {root / name}',
                     'fill it, or delete it')
    return found


def _split(root: Path, by_class: ByClass) -> OwnData:
    single = [name for name, paths in by_class.items() if len(paths) < 2]
    if single:
        raise OwnDataError(f'The classes {short(single)} of {root} have one '
                           'image, and one more is needed to judge by; add '
                           'some.')
    lines: Dict[str, List[str]] = {'train.txt': [], 'val.txt': []}
    for label, paths in enumerate(by_class.values()):
        for own, part in zip(lines.values(), held_out(paths)):
            own += [f'{path.relative_to(root).as_posix()} {label}'
                    for path in part]
    parts = [
        Split(dict(data_prefix=root, ann_file=Path(name)), len(own))
        for name, own in lines.items()
    ]
    return OwnData(
        'cls',
        list(by_class),
        *parts,
        median_size(sum(by_class.values(), [])),
        files={name: '\n'.join(own) + '\n' for name, own in lines.items()},
        notes=[SPLIT_NOTE])


def _extensions(by_class: ByClass) -> Dict[str, Any]:
    """Suffixes, where there are some that mmpretrain would not read."""
    found = {path.suffix.lower() for paths in by_class.values()
             for path in paths}
    return {} if found <= set(USUAL) else dict(extensions=sorted(found))
