# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Images and label maps of the same names, in two splits or to be split."""

from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from vim_mm.utils.reading import (JSON_BYTES, ReadError, parse_json,
                                  read_regular)
from .own_data import (SPLIT_NOTE, OwnData, OwnDataError, Split, check_classes,
                       check_images, check_readable, held_out, images_in,
                       median_size, short, some, split_folders)

#: The value of pixels that belong to no class.
IGNORED = 255
#: How many label maps are looked into.
OPENED = 1000

Named = Tuple[List[str], Optional[List[List[int]]]]


class Pairs:
    """The images of one split and their label maps.

    Args:
        images (Path): Folder of the images.
        labels (Path): Folder of the label maps; each is called as its image
            is, but for the suffix, which may say more (``x_mask.png``).

    Raises:
        FileNotFoundError: If a folder or a label map is not there.
        OwnDataError: If images and label maps do not fit each other.
    """

    def __init__(self, images: Path, labels: Path) -> None:
        self.folders = images, labels
        found = images_in(images)
        check_images(found, f'The folder {images}', 'put some there')
        endings = Counter(path.suffix for path in found)
        if len(endings) > 1:
            raise OwnDataError(
                f'The images in {images} end in {short(sorted(endings))}, and '
                'mmseg reads one suffix; convert those of the rarer ones.')
        self.suffix = next(iter(endings))
        self.names = [
            path.relative_to(images).as_posix()[:-len(self.suffix)]
            for path in found
        ]
        self.map_suffix = self._map_suffix()
        check_images(self.maps, f'the folder {labels}',
                     f'each image NAME{self.suffix} has a label map '
                     f'NAME{self.map_suffix}')

    @property
    def images(self) -> List[Path]:
        """The images."""
        return [self.folders[0] / f'{name}{self.suffix}'
                for name in self.names]

    @property
    def maps(self) -> List[Path]:
        """The label maps."""
        return [self.folders[1] / f'{name}{self.map_suffix}'
                for name in self.names]

    def _map_suffix(self) -> str:
        """What the names of label maps end in, by that of one image."""
        first, labels = self.names[0], self.folders[1]
        there = [path.relative_to(labels).as_posix()
                 for path in images_in(labels)]
        endings = [name[len(first):] for name in there
                   if name.startswith(first)]
        if not endings:
            raise FileNotFoundError(
                f'The image {self.images[0]} has no label map in {labels}, '
                f'which holds {short(there, 2) or "none"}; name each as its '
                'image.')
        # 'img_1' begins the name of the map of 'img_10' as well
        return min(endings, key=len)

    def dataset(self) -> Dict[str, Any]:
        """Settings of a data set of mmseg."""
        return dict(
            data_prefix=dict(
                img_path=self.folders[0], seg_map_path=self.folders[1]),
            img_suffix=self.suffix,
            seg_map_suffix=self.map_suffix)

    def values(self) -> Dict[int, Path]:
        """The values in the label maps, each with a map that has it.

        Raises:
            OwnDataError: If a map is no label map, or of another size than
                its image.
        """
        found: Dict[int, Path] = {}
        for image, path in some(list(zip(self.images, self.maps)), OPENED):
            values, size = _look_into(path)
            for value in values:
                found.setdefault(value, path)
            with Image.open(image) as opened:
                if opened.size != size:
                    raise OwnDataError(
                        f'The label map {path} has {size[0]}x{size[1]} px, '
                        f'and its image {opened.width}x{opened.height}; make '
                        'them one size.')
        return found


def read_label_maps(images: Path, labels: Path,
                    classes: Sequence[str]) -> OwnData:
    """Read and check images with label maps.

    Args:
        images (Path): Folder of the images, or of two splits of them.
        labels (Path): Folder of the label maps, laid out alike. Each pixel
            is the number of a class, or 255 for none.
        classes (Sequence[str]): Names of the classes from 0 on, or a txt or
            json file that lists them.

    Raises:
        FileNotFoundError: If a folder or a file is not there.
        OwnDataError: If something cannot be learned from.
    """
    splits = split_folders(images), split_folders(labels)
    if (splits[0] is None) != (splits[1] is None):
        with_, without = (images, labels) if splits[0] else (labels, images)
        raise OwnDataError(f'{with_} has a folder for each split and '
                           f'{without} has not; lay out both alike.')
    pairs = [Pairs(images, labels)]
    if splits[0]:
        pairs = [Pairs(*each) for each in zip(*splits)]
    check_readable(path for each in pairs for path in each.images + each.maps)
    values = {**pairs[-1].values(), **pairs[0].values()}
    names, palette = read_classes(classes, values)
    _check_values(names, values)
    data = OwnData(
        'seg',
        names,
        *(Split(each.dataset(), len(each.names))
          for each in (pairs[0], pairs[-1])),
        median_size(pairs[0].images),
        palette=palette)
    unused = [name for index, name in enumerate(names) if index not in values]
    if unused:
        data.notes.append('No pixel was seen of the classes '
                          f'{short(unused)}.')
    if len(pairs) == 1:
        _split(data, pairs[0])
    return data


def _split(data: OwnData, pairs: Pairs) -> None:
    if len(pairs.names) < 2:
        raise OwnDataError(f'{pairs.folders[0]} holds one image, and one more '
                           'is needed to judge by; add some.')
    for split, file, names in zip((data.train, data.val),
                                  ('train.txt', 'val.txt'),
                                  held_out(pairs.names)):
        data.files[file] = '\n'.join(names) + '\n'
        split.num = len(names)
        split.dataset = dict(split.dataset, ann_file=Path(file))
    data.notes.append(SPLIT_NOTE)


def _look_into(path: Path) -> Tuple[List[int], Tuple[int, int]]:
    """Values of a label map, and its width and height."""
    try:
        with Image.open(path) as image:
            labels, mode = np.array(image), image.mode
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise OwnDataError(f'The file {path} is damaged, or no image; write '
                           'it again, or take it out of the data set.'
                           ) from error
    if labels.ndim != 2 or labels.dtype.kind not in 'bui':
        raise OwnDataError(
            f'The label map {path} is an image of mode {mode}; each pixel is '
            'to be one number, that of its class (mode L or P): convert '
            'colours to numbers.')
    return np.unique(labels).astype(int).tolist(), labels.shape[::-1]


def _check_values(names: Sequence[str], values: Dict[int, Path]) -> None:
    classes = sorted(set(values) - {IGNORED})
    if classes == [0] and IGNORED in values:
        raise OwnDataError(
            f'The label maps hold 0 and {IGNORED} alone, such as '
            f'{values[IGNORED]}, and {IGNORED} stands for pixels to be '
            'ignored: write 1 in its place.')
    beyond = [value for value in classes if value >= len(names)]
    if beyond:
        hint = ''
        if beyond == [len(names)]:
            hint = ('; if 0 is background, name it first (numbers begin at '
                    '0)')
        raise OwnDataError(
            f'The label map {values[beyond[0]]} holds the value {beyond[0]}, '
            f'and the {len(names)} classes go from 0 to {len(names) - 1}, '
            f'{IGNORED} for none{hint}.')
    if len(classes) < 2:
        raise OwnDataError(
            f'The label maps hold {classes or "no class"} alone beside '
            f'{IGNORED}, so there is nothing to tell apart; each pixel is the '
            'number of its class.')


def read_classes(given: Sequence[str],
                 values: Dict[int, Path] = {}) -> Named:
    """Names of classes, and their colours if a file gives them.

    Args:
        given (Sequence[str]): The names, or one file: a txt with a name a
            line, or a json with a list of names or of objects with a
            ``name`` and perhaps a ``color``.
        values (dict): Values that label maps hold, for messages.

    Raises:
        FileNotFoundError: If a file is named that does not exist.
        OwnDataError: If there are none.
    """
    if not given:
        seen = sorted(set(values) - {IGNORED})
        raise OwnDataError(
            f'The label maps hold the numbers {short(seen, 12)}; name their '
            'classes in this order, --classes NAME NAME …, or give a txt or '
            'json file that lists them.')
    path = Path(given[0])
    if len(given) > 1 or path.suffix.lower() not in ('.txt', '.json'):
        return check_classes(given, '--classes'), None
    if not path.is_file():
        raise FileNotFoundError(f'There is no file {path}: check --classes.')
    try:
        text = read_regular(path, JSON_BYTES).decode('utf-8-sig')
        if path.suffix.lower() == '.json':
            return _named(parse_json(text), path)
    except UnicodeDecodeError:
        raise OwnDataError(f'{path} is no text in UTF-8; save it as such.'
                           ) from None
    except ReadError as error:
        raise OwnDataError(f'{path}: {error}.') from None
    lines = [line.strip() for line in text.splitlines()]
    return check_classes([line for line in lines if line], str(path)), None


def _named(listed: Any, path: Path) -> Named:
    if isinstance(listed, dict):
        listed = listed.get('classes', listed.get('categories'))
    if not isinstance(listed, list):
        raise OwnDataError(f'{path} holds no list of classes; write '
                           '["road", "tree", …], or objects with a `name`.')
    objects = [each for each in listed if isinstance(each, dict)]
    names = [each.get('name', '') if isinstance(each, dict) else each
             for each in listed]
    colours = [each.get('color') for each in objects]
    whole = len(colours) == len(names) and all(
        isinstance(c, list) and len(c) == 3 for c in colours)
    return check_classes(names, str(path)), colours if whole else None
