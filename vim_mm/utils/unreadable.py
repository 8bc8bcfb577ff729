# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Files that a data pipeline cannot read, named in a sentence."""

import os.path as osp
from functools import wraps
from typing import Any, Optional

from mmengine.dataset.base_dataset import Compose
from PIL import Image

from .messages import InputError

#: Where a sample keeps the paths of what its stages read.
_PATHS = ('img_path', 'seg_map_path')
_SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif',
             '.tiff', '.webp')


class UnreadableFileError(InputError):
    """A file of a data set that is empty or damaged."""


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
        except UnreadableFileError:
            raise
        except Exception as error:
            said = _unreadable(data)
            if said is None:
                raise
            raise UnreadableFileError(said) from error

    call.names_files = True
    Compose.__call__ = call


def _unreadable(data: Any) -> Optional[str]:
    """A sentence on the first file of a sample that cannot be read."""
    if not isinstance(data, dict):
        return None
    for key in _PATHS:
        paths = data.get(key)
        for path in paths if isinstance(paths, list) else [paths]:
            if not isinstance(path, str) or not osp.isfile(path):
                continue
            if not osp.getsize(path):
                return (f'The file {path} is empty (0 bytes); write it again, '
                        'or take it out of the data set.')
            if path.lower().endswith(_SUFFIXES) and not _opens(path):
                return (f'The file {path} is damaged, or no image; write it '
                        'again, or take it out of the data set.')
    return None


def _opens(path: str) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except Exception:  # decoders raise all kinds
        return False
    return True
