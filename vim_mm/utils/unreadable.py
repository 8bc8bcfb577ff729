# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Files that a data pipeline cannot read, named in a sentence."""

import os
import os.path as osp
from functools import wraps
from pathlib import Path
from typing import Any, Callable, Optional

from mmengine.dataset.base_dataset import BaseDataset, Compose
from PIL import Image

from .messages import InputError, short
from .refusals import frames, refused_by_library, words_of

#: Where a sample keeps the paths of what its stages read.
_PATHS = ('img_path', 'seg_map_path')
#: Images that are tried again to find the stage that gives none.
_AGAIN = 20
_SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif',
             '.tiff', '.webp')
_PNG, _JPEG = b'\x89PNG', b'\xff\xd8'
#: The last chunk of a PNG, with its checksum.
_PNG_END = b'IEND\xaeB`\x82'
#: The mark behind the data of a JPEG, and that before it.
_JPEG_END, _SCAN = b'\xff\xd9', b'\xda'


class UnreadableFileError(InputError):
    """A file of a data set that is empty or damaged."""


class PipelineError(InputError):
    """A stage of a pipeline that cannot do what its config says."""


def watch_pipelines() -> None:
    """Let all pipelines name the file that they cannot read. Idempotent.

    What decoders say of an empty or damaged image does not name it.
    """
    original = Compose.__call__
    if hasattr(original, 'names_files'):
        return

    @wraps(original)
    def call(self: Compose, data: Any) -> Any:
        try:
            return original(self, data)
        except (UnreadableFileError, PipelineError):
            raise
        except Exception as error:
            said = _unreadable(data)
            if said is not None:
                raise UnreadableFileError(said) from error
            if not refused_by_library(error):
                raise
            raise PipelineError(_failed(self, data, error)) from error

    call.names_files = True
    Compose.__call__ = call
    BaseDataset.__getitem__ = _naming_none(BaseDataset.__getitem__)


def _naming_none(original: Callable) -> Callable:
    """mmengine's method that gives up where a pipeline gives no image."""

    @wraps(original)
    def item(self: BaseDataset, index: int) -> Any:
        try:
            return original(self, index)
        except Exception as error:
            *_, last = frames(error)
            if last.f_code is not original.__code__:
                raise
            said = _said_of_none(self, index)
            if said is None:
                raise
            raise PipelineError(said) from error

    return item


def _said_of_none(dataset: BaseDataset, index: int) -> Optional[str]:
    """A sentence on the stage that gives None; None if it is not found."""
    for number in range(min(_AGAIN, len(dataset))):
        data: Any = dataset.get_data_info((index + number) % len(dataset))
        image = short(data.get('img_path'))
        for stage in dataset.pipeline.transforms:
            data = stage(data)
            if data is None:
                name = getattr(stage, '__name__', type(stage).__name__)
                whose = f'the image {image}' if dataset.test_mode else (
                    f'each of {dataset.max_refetch + 1} images, such as '
                    f'{image}')
                return (f'The stage {name} of a pipeline gives None in the '
                        f'place of {whose}; let it return what it was given, '
                        'or, if it drops images without objects, look at the '
                        'sizes that it asks for.')
    return None


def _failed(pipeline: Compose, data: Any, error: Exception) -> str:
    """A sentence on the stage that raised a library's error."""
    stages = {id(stage): stage for stage in pipeline.transforms}
    failed = [stages[id(frame.f_locals.get('self'))] for frame in frames(error)
              if id(frame.f_locals.get('self')) in stages]
    name = type(failed[-1]).__name__ if failed else 'a stage'
    image = data.get('img_path') if isinstance(data, dict) else None
    return (f'The pipeline ends at {name}, image {short(image)}: '
            f'{words_of(error)}; correct its settings, or what comes before.')


def _unreadable(data: Any) -> Optional[str]:
    """A sentence on the first file of a sample that cannot be read."""
    if not isinstance(data, dict):
        return None
    for key in _PATHS:
        paths = data.get(key)
        for path in paths if isinstance(paths, list) else [paths]:
            if not isinstance(path, str) or not osp.isfile(path):
                continue
            is_image = path.lower().endswith(_SUFFIXES)
            if is_image or not osp.getsize(path):
                said = flaw_of(path)
                if said is not None:
                    return said
    return None


def flaw_of(path: str) -> Optional[str]:
    """What is wrong with an image file, in a sentence; None if nothing is.

    Args:
        path (str): The file, which is decoded.
    """
    fix = 'write it again, or take it out of the data set'
    if not osp.getsize(path):
        return f'The file {path} is empty (0 bytes); {fix}.'
    if not (_has_end(Path(path).read_bytes()) and _opens(path)):
        return f'The file {path} is damaged, or no image; {fix}.'
    return None


def _opens(path: str) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except Exception:  # decoders raise all kinds
        return False
    return True


def _has_end(content: bytes) -> bool:
    """Whether what ends a PNG or JPEG is in a file; True of other formats.

    Pillow reads a PNG without it, and both Pillow and OpenCV a JPEG whose
    last bytes are not its own.
    """
    if content.startswith(_PNG):
        return _PNG_END in content
    if not content.startswith(_JPEG):
        return True
    # a preview in the segments before the image has an end of its own
    place = 2
    while content[place:place + 1] == b'\xff':
        kind = content[place + 1:place + 2]
        if kind == _SCAN:
            return content.find(_JPEG_END, place) > 0
        place += 1 if kind == b'\xff' else 2 + int.from_bytes(
            content[place + 2:place + 4], 'big')
    return False


def ends_as_images_do(path: str) -> bool:
    """Whether an image file ends where its format says that it does.

    A file that was cut does not. That needs no decoding, so it is known of
    many files at once; damage in the middle of one is not seen.

    Args:
        path (str): The file.

    Returns:
        bool: False also for formats whose end says nothing (TIFF, PPM).
    """
    with open(path, 'rb') as file:
        head = file.read(12)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(_PNG_END)))
        tail = file.read()
    if head.startswith(_JPEG):
        return tail.endswith(_JPEG_END)
    if head.startswith(_PNG):
        return tail == _PNG_END
    if head.startswith(b'BM'):  # BMP
        return size == int.from_bytes(head[2:6], 'little')
    if head.startswith(b'RIFF') and head.endswith(b'WEBP'):
        return size == 8 + int.from_bytes(head[4:8], 'little')
    return False
