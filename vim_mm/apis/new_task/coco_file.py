# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""One json in COCO's format, looked at before it is learned from."""

import json
import os
from collections import Counter
from pathlib import Path, PurePath
from typing import Any, Dict, Iterator, List, Sequence

from vim_mm.utils.messages import short as shortened
from vim_mm.utils.reading import ReadError, read_regular
from .own_data import OwnDataError, check_classes, check_images, size_of

#: Bytes of a json; those of the largest data sets have less than half.
JSON_BYTES = 4 << 30
#: Lists of a json, their fields that are read as they are, and what these are.
_ID, _NUMBER = (int, str), (int, float)
LISTS: Dict[str, Dict[str, tuple]] = dict(
    images=dict(id=_ID, width=_NUMBER, height=_NUMBER),
    annotations=dict(
        id=_ID, image_id=_ID, category_id=_ID, area=_NUMBER, iscrowd=_NUMBER),
    categories=dict(id=_ID))


class CocoFile:
    """One json and its images, which are there.

    Args:
        path (Path): The file.
        folders (Sequence[Path]): Where its images may be; looked for around
            the file if there are none.

    Raises:
        FileNotFoundError: If the file or images do not exist.
        OwnDataError: If it is damaged.
    """

    def __init__(self, path: Path, folders: Sequence[Path]) -> None:
        self.path = path
        self.notes: List[str] = []
        self.data = _read(path)
        self.images = {image.get('id'): image for image in self.data['images']}
        self.names = _category_names(path, self.data['categories'])
        self.folder = self._find_images(folders)
        self.completed = False
        self.boxes: Counter = Counter()

    def check(self) -> None:
        """Complete it by what mmdet reads of it, and count its boxes.

        Raises:
            OwnDataError: If no boxes can be learned from.
        """
        self.completed = self._complete()
        self._check_references()
        self.boxes = self._count_boxes()

    @property
    def files(self) -> List[Path]:
        """Its images."""
        return [self.folder / image['file_name']
                for image in self.images.values()]

    def _find_images(self, folders: Sequence[Path]) -> Path:
        if not self.images:
            raise OwnDataError(f'{self.path} lists no images; export it '
                               'again.')
        names = [image.get('file_name') for image in self.images.values()]
        if not all(map(_is_name, names)):
            raise OwnDataError(f'{self.path} lists images without a '
                               '`file_name`; export it again.')
        for folder in folders:
            if not folder.is_dir():
                raise FileNotFoundError(f'There is no folder {folder}: check '
                                        '--images.')
        places = list(folders) or list(_around(self.path))
        counts = [sum((place / name).is_file() for name in names[:50])
                  for place in places]
        best = places[counts.index(max(counts))]
        check_images([best / name for name in names], str(self.path),
                     'name their folder by --images')
        return best

    def _complete(self) -> bool:
        """Fill in what mmdet and its metric read and can be computed."""
        added: Counter = Counter()
        for image in self.images.values():
            if not image.get('width') or not image.get('height'):
                image['height'], image['width'] = size_of(
                    self.folder / image['file_name'])
                added['width and height of images'] += 1
        for index, box in enumerate(self.data['annotations']):
            given = box.get('bbox')
            if not _is_box(given):
                raise OwnDataError(
                    f'Annotation {box.get("id", index)} of {self.path} has '
                    f'the bbox {shortened(given)}, and it is x, y, width and '
                    'height in pixels; correct or remove it.')
            for key, value in (('area', given[2] * given[3]), ('iscrowd', 0),
                               ('id', index + 1)):
                if key not in box:
                    box[key] = value
                    added[f'`{key}`'] += 1
        if added:
            self.notes.append(
                f'{self.path.name} lacks {", ".join(added)}, which mmdet '
                'reads: a completed copy is beside the config.')
        return bool(added)

    def _check_references(self) -> None:
        ids = [image.get('id') for image in self.data['images']]
        if len(set(ids)) < len(ids):
            raise OwnDataError(f'{self.path} gives two images one id, such as '
                               f'{Counter(ids).most_common(1)[0][0]}; export '
                               'it again.')
        ids = [box['id'] for box in self.data['annotations']]
        if len(set(ids)) < len(ids):
            raise OwnDataError(
                f'{self.path} gives two annotations one id, such as '
                f'{Counter(ids).most_common(1)[0][0]}; export it again.')
        for key, known in (('image_id', self.images),
                           ('category_id', self.names)):
            lost = [box.get(key) for box in self.data['annotations']
                    if box.get(key) not in known]
            if lost:
                raise OwnDataError(
                    f'{len(lost)} annotations of {self.path} name a {key} '
                    f'such as {lost[0]}, which it does not list; export it '
                    'again.')

    def _count_boxes(self) -> Counter:
        """Boxes by class that mmdet takes."""
        boxes = self.data['annotations']
        taken = Counter(self.names[box['category_id']] for box in boxes
                        if self._is_taken(box))
        left_out = len(boxes) - sum(taken.values())
        if not taken:
            raise OwnDataError(
                f'Of the {len(boxes)} boxes of {self.path} none can be '
                'learned from; each is x, y, width and height in pixels, '
                'inside its image and a pixel or larger.')
        if left_out:
            self.notes.append(f'{left_out} of {len(boxes)} boxes of '
                              f'{self.path.name} are crowds, outside of their '
                              'images or smaller than a pixel, and are left '
                              'out.')
        bare = len(self.images) - len({box['image_id'] for box in boxes})
        if bare:
            self.notes.append(f'{bare} of {len(self.images)} images of '
                              f'{self.path.name} have no box; they are kept, '
                              'as images of background.')
        return taken

    def _is_taken(self, box: Dict[str, Any]) -> bool:
        image = self.images[box['image_id']]
        x, y, width, height = box['bbox']
        inside = (min(x + width, image['width']) > max(x, 0)
                  and min(y + height, image['height']) > max(y, 0))
        return (inside and min(width, height) >= 1 and box['area'] > 0
                and not box['iscrowd'] and not box.get('ignore'))

    def part(self, images: List[dict]) -> str:
        """The text of a json with some of the images."""
        ids = {image['id'] for image in images}
        boxes = [box for box in self.data['annotations']
                 if box['image_id'] in ids]
        return json.dumps(dict(self.data, images=images, annotations=boxes))


def _read(path: Path) -> Dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f'There is no file {path}: check the path.')
    try:
        data = json.loads(read_regular(path, JSON_BYTES))
    except ReadError as error:
        raise OwnDataError(f'{path}: {error}.') from None
    except (ValueError, RecursionError) as error:
        raise OwnDataError(f'{path} is no valid JSON ({error}); export it '
                           'again.') from None
    lists = [key for key in LISTS if isinstance(data, dict) and isinstance(
        data.get(key), list) and all(isinstance(x, dict) for x in data[key])]
    if len(lists) < len(LISTS):
        raise OwnDataError(f'{path} is not in COCO\'s format, which lists '
                           f'{", ".join(LISTS)}; export it as COCO.')
    for name, fields in LISTS.items():
        for each in data[name]:
            _check_fields(each, fields, f'{path} lists {name}')
    return data


def _check_fields(each: Dict[str, Any], fields: Dict[str, tuple],
                  where: str) -> None:
    """Refuse values of another type; null is as if it were left out.

    Raises:
        OwnDataError: If there is one.
    """
    for key, kinds in fields.items():
        value = each.get(key)
        if value is None:
            each.pop(key, None)
        elif not isinstance(value, kinds):
            what = 'number' if kinds is _NUMBER else 'number or text'
            raise OwnDataError(f'{where} with the {key} {shortened(value)}, '
                               f'which is no {what}; export it again.')


def _is_name(name: Any) -> bool:
    """Whether a value can be the name of a file."""
    return isinstance(name, str) and bool(name) and all(
        len(part) <= 255 for part in PurePath(name).parts)


def _is_box(given: Any) -> bool:
    """Whether a value is four numbers; NaN is left out later, as by mmdet."""
    return isinstance(given, list) and len(given) == 4 and all(
        isinstance(each, _NUMBER) and abs(each) != float('inf')
        for each in given)


def _category_names(path: Path, categories: List[dict]) -> Dict[Any, str]:
    names = check_classes([each.get('name', '') for each in categories],
                          str(path))
    return {each.get('id'): name for each, name in zip(categories, names)}


def _around(path: Path) -> Iterator[Path]:
    """Folders where images of a json commonly are."""
    for place in (path.parent, path.absolute().parent.parent):
        yield place
        if os.access(place, os.R_OK):
            yield from sorted(filter(os.path.isdir, place.iterdir()))
