# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a user's data turns out to be, and checks that all kinds share."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

from PIL import Image, UnidentifiedImageError

from vim_mm.utils.messages import InputError
from vim_mm.utils.progress import track
from vim_mm.utils.unreadable import ends_as_images_do, flaw_of

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff',
            '.webp')
#: What the folders of the two splits may be called.
TRAIN = ('train', 'training', 'train2017')
VAL = ('val', 'valid', 'validation', 'val2017', 'test', 'testing')
#: Share of the images to judge by, where nobody has split them.
HELD_OUT = 0.2
#: How many images are opened to see how large they are.
OPENED = 200
#: How many files that cannot be read are named.
SHOWN = 10


class OwnDataError(InputError):
    """Data of one's own that cannot be learned from as it is."""


@dataclass
class Split:
    """The images to learn from, or those to judge by.

    Attributes:
        dataset (dict): Config of the data set, with paths as :class:`Path`.
        num (int): Number of images.
    """
    dataset: Dict[str, Any]
    num: int


@dataclass
class OwnData:
    """A user's data.

    Attributes:
        kind (str): 'cls', 'det' or 'seg'.
        classes (list[str]): Names of the classes, in order.
        train (Split): To learn from.
        val (Split): To judge by.
        size (tuple[int, int]): Median height and width of the images.
        palette (list, optional): A colour for each class, if there are any.
        licence (str, optional): What the data says of its licence.
        files (dict[str, str]): Lists to be written beside the config, by
            name; a :class:`Path` that is one of the names means the list.
        notes (list[str]): What the user should know.
    """
    kind: str
    classes: List[str]
    train: Split
    val: Split
    size: Tuple[int, int]
    palette: Optional[List[List[int]]] = None
    licence: Optional[str] = None
    files: Dict[str, str] = field(default_factory=dict)
    notes: List[str] = field(default_factory=list)


def images_in(folder: Path) -> List[Path]:
    """All images below a folder, sorted, hidden ones left out.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f'There is no folder {folder}: check the '
                                'path.')
    return sorted(path for path in folder.rglob('*')
                  if path.suffix.lower() in SUFFIXES and path.is_file()
                  and not path.name.startswith('.'))


def split_folders(root: Path) -> Optional[Tuple[Path, Path]]:
    """The folders of a root that hold its two splits, if it has both.

    Raises:
        OwnDataError: If it has only one of them.
    """
    if not root.is_dir():
        raise FileNotFoundError(f'There is no folder {root}: check the path.')
    names = {path.name.lower(): path for path in sorted(root.iterdir())
             if path.is_dir()}
    found = [next((names[name] for name in known if name in names), None)
             for known in (TRAIN, VAL)]
    if all(found):
        return found[0], found[1]
    if any(found):
        raise OwnDataError(
            f'{root} has a folder {next(filter(None, found)).name} and no '
            'other split beside it; name the folders of images to learn from '
            f'and to judge by {TRAIN[0]} and {VAL[0]}, or have neither and '
            'let the images be split.')
    return None


def held_out(items: Sequence[Any], seed: int = 0) -> Tuple[list, list]:
    """A part to learn from and a part to judge by, each in order.

    Of two items and more both parts have some; the draw is always the same.
    """
    number = min(max(round(len(items) * HELD_OUT), 1), len(items) - 1)
    chosen = set(random.Random(seed).sample(range(len(items)), number))
    return ([item for i, item in enumerate(items) if i not in chosen],
            [item for i, item in enumerate(items) if i in chosen])


SPLIT_NOTE = (
    'The images were split at random, four fifths to learn from; where '
    'several show one scene, split them by hand, or results look too good.')


def check_images(paths: Sequence[Path], who: str,
                 fix: str = 'check the path') -> None:
    """Refuse images that are not there.

    Raises:
        FileNotFoundError: If some do not exist.
        OwnDataError: If there are none.
    """
    if not paths:
        raise OwnDataError(f'{who} has no image ({", ".join(SUFFIXES)}); '
                           f'{fix}.')
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f'Of the {len(paths)} images of {who}, {len(missing)} are not '
            f'there, such as {missing[0]}; {fix}.')


def check_readable(paths: Iterable[Path]) -> None:
    """Refuse images that are empty or were cut off, each in a line.

    All of them are looked at. Those that end as their format says are not
    decoded, so damage in the middle of a file is not seen.

    Raises:
        OwnDataError: If some cannot be read.
    """
    files = list(dict.fromkeys(map(str, paths)))
    cut = [path for path in track(files, 'Checking images', len(files))
           if not ends_as_images_do(path)]
    flaws = list(filter(None, map(
        flaw_of, track(cut, 'Decoding images', len(cut)))))
    if len(flaws) > 1:
        flaws.insert(0, f'{len(flaws)} of {len(files)} images cannot be read.')
    if len(flaws) > SHOWN + 1:
        flaws[SHOWN + 1:] = [f'… and {len(flaws) - SHOWN - 1} more.']
    if flaws:
        raise OwnDataError('\n'.join(flaws))


def median_size(paths: Sequence[Path]) -> Tuple[int, int]:
    """Median height and width of some of the images.

    Raises:
        OwnDataError: If a file is no image.
    """
    sizes = [size_of(path) for path in some(paths, OPENED)]
    heights, widths = zip(*sizes)
    return round(median(heights)), round(median(widths))


def size_of(path: Path) -> Tuple[int, int]:
    """Height and width of an image, from its header.

    Raises:
        OwnDataError: If the file is no image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise OwnDataError(f'The file {path} is damaged, or no image; write '
                           'it again, or take it out of the data set.'
                           ) from error


def some(items: Sequence[Any], number: int) -> List[Any]:
    """At most so many of the items, at even steps."""
    step = max(1, len(items) / number)
    return [items[int(i * step)] for i in range(min(number, len(items)))]


def check_classes(names: Sequence[str], where: str) -> List[str]:
    """Class names as strings.

    Raises:
        OwnDataError: If there are none, one is empty, or two are the same.
    """
    names = [str(name).strip() for name in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or not all(names):
        raise OwnDataError(f'{where} names no class, or one without a name; '
                           'give each a name.')
    if twice:
        raise OwnDataError(f'{where} names {", ".join(twice)} twice; give '
                           'each class a name of its own.')
    return names


def short(names: Sequence[Any], number: int = 5) -> str:
    """Some of the names, and how many there are."""
    listed = ', '.join(map(str, names[:number]))
    more = len(names) - number
    return f'{listed} and {more} more' if more > 0 else listed
