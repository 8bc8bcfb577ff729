# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What libraries say of a config, in an error of their own, as one sentence.

An error whose innermost frame is in a library comes from what it was given.
One of a file of the user's, or of ours, may be a bug and stays as it is.
"""

import traceback
from types import FrameType
from typing import Iterator, Optional

from .building import RefusedError
from .cli import is_user_error
from .messages import cut, printable

#: Packages that a run is made of.
_LIBRARIES = ('PIL', 'albumentations', 'cv2', 'mmcv', 'mmdet', 'mmengine',
              'mmpretrain', 'mmseg', 'numpy', 'pycocotools', 'timm', 'torch',
              'torchvision', 'transformers')
#: Modules of Python itself.
_STANDARD = ('multiprocessing', )
_SAID = 300


def refused_by_library(error: Exception) -> bool:
    """Whether an error is a library's, and no sentence of ours.

    What a process of a loader raised is as it was there.
    """
    if is_user_error(error) or str(error).startswith('Caught '):
        return False
    frame = None
    for frame in frames(error):
        pass
    if frame is None:
        return False
    within = unhooked(error)
    if within is not error:
        return refused_by_library(within)
    return _library(frame) is not None


def unhooked(error: Exception) -> Exception:
    """What a hook raised, where mmengine has added the name of the hook."""
    last = None
    for last in frames(error):
        pass
    within = error.__context__
    if last is not None and last.f_code.co_name == 'call_hook' \
            and isinstance(within, Exception):
        return within
    return error


def is_ones_own(kind: type) -> bool:
    """Whether a class is of nobody that a run is made of, nor of ours."""
    return kind.__module__.partition('.')[0] not in (*_LIBRARIES, 'vim_mm')


def frames(error: Exception) -> Iterator[FrameType]:
    """Where an error came by, the innermost place last."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        yield frame


def _library(frame: FrameType) -> Optional[str]:
    # by its name: a clone of a library may lie anywhere
    name = str(frame.f_globals.get('__name__', '')).partition('.')[0]
    return name if name in _LIBRARIES + _STANDARD else None


def words_of(error: Exception) -> str:
    """The type of an error and what it says, in one line."""
    said = str(error).strip()
    if not said:  # an assertion says what it asks for
        said = traceback.extract_tb(error.__traceback__)[-1].line or ''
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    line = cut(printable(lines[0] if lines else ''), _SAID).rstrip('.')
    return f'{type(error).__name__}, {line}' if line else type(error).__name__


def refusal(what: str, error: Exception, fix: str) -> RefusedError:
    """A sentence of ours on what a library raised."""
    return RefusedError(f'{what}{_stage_of(error)}: {words_of(error)}; {fix}.')


def _stage_of(error: Exception) -> str:
    """The innermost stage of a pipeline that an error came by, in words."""
    found = ''
    for frame in frames(error):
        # itself, or what a wrapper of data sets is at
        for name in ('self', 'transform'):
            kinds = type(frame.f_locals.get(name)).__mro__
            if any(kind.__name__ == 'BaseTransform' for kind in kinds):
                found = f' in the stage {kinds[0].__name__}'
    return found
