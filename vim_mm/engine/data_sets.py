# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What data sets have read, against the files that are there."""

import logging
import os
import os.path as osp
from collections import defaultdict
from typing import Any, Dict, Iterable, Iterator, List, Set, Tuple

from mmengine.dataset import BaseDataset, Compose
from mmengine.logging import print_log

from vim_mm.utils.config import type_name
from vim_mm.utils.messages import cut, printable, short

#: Most images that are looked for, and that are opened.
LISTED, OPENED = 200_000, 32
#: Most label maps that are opened.
MAPS = 8
#: Most images whose annotations are looked at.
LOOKED_AT = 2_000
#: Characters of a file's name in a message.
NAME = 200
#: What begins no name of an image.
_NO_NAME = tuple('[{<')
_IMAGES = ('.bmp', '.gif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif',
           '.tiff', '.webp')


def parts_of(dataset: Any) -> Iterator[BaseDataset]:
    """The data sets of mmengine that are inside any wrappers, each once."""
    if isinstance(dataset, BaseDataset):
        yield dataset
        return
    for part in _inside(dataset):
        yield from parts_of(part)


def _inside(dataset: Any) -> List[Any]:
    """What a wrapper of data sets holds; nothing if it is none."""
    inner = getattr(dataset, 'datasets', None)
    if isinstance(inner, dict):
        return list(inner.values())
    if inner is not None:
        return list(inner)
    held = getattr(dataset, '__dict__', {})
    # or a slice of one
    return [held[name] for name in {'dataset', '_dataset'} & held.keys()]


def num_images(dataset: Any) -> int:
    """How many different images a data set has, however it repeats them."""
    found: Dict[Any, Tuple[int, int]] = {}
    for key, number, most in _shares(dataset, len(dataset)):
        found[key] = found.get(key, (0, ))[0] + number, most
    return sum(min(numbers) for numbers in found.values())


def _shares(dataset: Any, most: int) -> Iterator[Tuple[Any, int, int]]:
    """Each data set inside wrappers: what tells it from others, how many of
    its images are taken at most, and how many it has.
    """
    own = len(dataset)
    inner = [] if isinstance(dataset, BaseDataset) else _inside(dataset)
    for part in inner:
        yield from _shares(part, min(most, own))
    if not inner:
        key: Any = id(dataset)
        if isinstance(dataset, BaseDataset):
            key = named(dataset), str(dataset.data_prefix), own
        yield key, min(most, own), own


def named(dataset: Any) -> str:
    """A data set, as a config or as what it has noted, and its files."""
    while isinstance(dataset, dict) and 'dataset' in dataset:
        dataset = dataset['dataset']  # inside of a wrapper
    if not isinstance(dataset, dict):
        dataset = dict(vars(dataset), type=type(dataset))
    where = [
        f'{key}={dataset[key]!r}' for key in ('data_root', 'ann_file')
        if dataset.get(key)
    ]
    return f'{type_name(dataset)}({", ".join(where)})'


def infos(dataset: BaseDataset, most: int) -> Iterator[dict]:
    """What a data set notes of its images, of at most so many of them."""
    number = len(dataset)
    step = max(1, number / most)
    for index in range(min(number, most)):
        yield dataset.get_data_info(int(index * step))


def instances(info: dict) -> List[dict]:
    """The objects that a data set notes of an image."""
    found = info.get('instances')
    return [each for each in found if isinstance(each, dict)] if isinstance(
        found, list) else []


def check_files(dataset: Any) -> None:
    """Refuse a data set whose images are missing or of another size.

    The first pass through them would end there, or boxes and label maps would
    lie elsewhere than they were drawn.

    Args:
        dataset (Dataset): As a loader has it.

    Raises:
        FileNotFoundError: If files are not there.
        ValueError: If an image is not as large as its annotation says, or as
            its label map is, or such a map is one of colours.
    """
    for part in parts_of(dataset):
        stages = part.pipeline.transforms
        load = next((stage for stage in stages if _reads_images(stage)), None)
        if load is None or any(map(_is_elsewhere, (part, *stages))):
            continue
        keys = ['img_path']
        if any('Annotation' in type(stage).__name__ for stage in stages):
            keys.append('seg_map_path')
        paths = {
            info[key] for info in infos(part, LISTED) for key in keys
            if isinstance(info.get(key), str) and '://' not in info[key]
        }
        _check_there(paths, part)
        _say_left_out(part, paths)
        _check_sizes(part, load)
        _check_maps(part, load)


def _reads_images(stage: Any) -> bool:
    name = type(stage).__name__
    return name.startswith('LoadImage') and name.endswith('FromFile') \
        and not getattr(stage, 'ignore_empty', False)


def _is_elsewhere(reader: Any) -> bool:
    """Whether a data set or a loading stage reads from another storage."""
    given = getattr(reader, 'backend_args', None) or getattr(
        reader, 'file_client_args', None) or {}
    return given.get('backend', 'local') not in ('local', 'disk')


def as_list(dataset: BaseDataset, missing: Iterable[str]) -> str:
    """What to say where a json or XML is taken for a list of names.

    Args:
        dataset (BaseDataset): The data set.
        missing (Iterable[str]): Files that it names, and are not there.

    Returns:
        str: Such as ': it takes …'; empty if that is not the cause.
    """
    path = getattr(dataset, 'ann_file', None)
    if not isinstance(path, str) or not osp.isfile(path):
        return ''
    with open(path, errors='replace') as file:
        first = file.readline(NAME).strip()
    if not first.startswith(_NO_NAME) or not any(first in name
                                                 for name in missing):
        return ''
    return (f': it takes each line of its `ann_file` for the name of an image,'
            f' and the first is {short(first)}; give a list of names')


def _check_there(paths: Iterable[str], dataset: BaseDataset) -> None:
    by_folder: Dict[str, Set[str]] = defaultdict(set)
    for path in paths:
        folder, name = osp.split(path)
        by_folder[folder].add(name)
    missing: List[str] = []
    for folder, names in by_folder.items():
        # a network's disk lists a folder faster than it finds each file
        there = set(_files_in(folder or '.'))
        missing += (osp.join(folder, name) for name in names - there)
    if missing:
        raise FileNotFoundError(
            f'{len(missing)} files of {named(dataset)} are not there, such as '
            f"'{cut(printable(min(missing)), NAME)}'"
            f'{as_list(dataset, missing)}; copy them, look at `data_prefix` '
            "and the suffixes, or take them out of the data set's lists.")


def _files_in(folder: str) -> Iterator[str]:
    if osp.isdir(folder):
        with os.scandir(folder) as entries:
            yield from (each.name for each in entries if each.is_file())


def _say_left_out(dataset: BaseDataset, taken: Set[str]) -> None:
    """Name images of a folder that its data set passes over by their ends."""
    if dataset.ann_file and not osp.isdir(dataset.ann_file):
        return
    prefix = dataset.data_prefix or {}
    if hasattr(dataset, 'img_suffix'):
        option, ends = 'img_suffix', (dataset.img_suffix, )
    elif hasattr(dataset, 'extensions'):
        option, ends = 'extensions', tuple(sorted(dataset.extensions))
    else:
        return
    left = sorted(
        path for path in set(_images_in(prefix.get('img_path'))) - taken
        if not (path.lower() if option == 'extensions' else path).endswith(
            ends))
    if left:
        print_log(
            f'{len(left)} images in {prefix["img_path"]}, such as '
            f'{short(left[0])}, are left out: they do not end in '
            f'{short(list(ends))} (`{option}`).',
            logger='current',
            level=logging.WARNING)


def _images_in(folder: Any) -> Iterator[str]:
    if not isinstance(folder, str) or not folder:
        return
    for where, _, names in os.walk(folder):
        for name in names:
            if name.lower().endswith(_IMAGES) and not name.startswith('.'):
                yield osp.join(where, name)


def _check_sizes(dataset: BaseDataset, load: Any) -> None:
    """Compare the sizes that annotations give with some of the images."""
    read = Compose([load])  # names what cannot be read
    for info in infos(dataset, OPENED):
        if not ({'width', 'height'} <= info.keys()
                and isinstance(info.get('img_path'), str)):
            return
        found: Tuple[int, int] = tuple(read(dict(info))['ori_shape'][:2])
        if found != (info['height'], info['width']):
            raise ValueError(
                f"The image {info['img_path']} has {found[1]} x {found[0]} "
                f'px as it is read, and {dataset.ann_file} says '
                f"{info['width']} x {info['height']} (width x height): its "
                'boxes would lie elsewhere, or be left out; correct the '
                'sizes, and the boxes if they are of that size (EXIF may '
                'turn an image).')


def _check_maps(dataset: BaseDataset, load: Any) -> None:
    """Compare the sizes of some label maps with those of their images.

    A pipeline that brings both to one size would hide it.
    """
    maps = next((stage for stage in dataset.pipeline.transforms
                 if type(stage).__name__ == 'LoadAnnotations'), None)
    if maps is None:
        return
    read = Compose([load, maps])
    for info in infos(dataset, MAPS):
        if not isinstance(info.get('seg_map_path'), str):
            return
        found = read(dict(info, seg_fields=[]))
        if getattr(found.get('gt_seg_map'), 'ndim', 2) != 2:
            raise ValueError(
                f"The label map {info['seg_map_path']} has "
                f'{found["gt_seg_map"].shape[-1]} channels; give maps of one, '
                'whose pixels are the numbers of classes.')
        image, labels = (found[key].shape[:2] if key in found else None
                         for key in ('img', 'gt_seg_map'))
        if image and labels and image != labels:
            raise ValueError(
                f"The image {info['img_path']} has {image[1]} x {image[0]} px,"
                f" and its label map {info['seg_map_path']} {labels[1]} x "
                f'{labels[0]} (width x height), so its labels would lie '
                'elsewhere; give maps of the size of their images (EXIF may '
                'turn an image).')
