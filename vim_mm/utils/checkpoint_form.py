# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a ``.pth`` file may hold, before and after it is read.

An archive can unpack to thousands of times its size, and a tensor of one
number can claim to have terabytes. Damage leaves the form of a checkpoint
rarely as it was.
"""

import re
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO, Dict, Iterable, List, Optional, Set, Tuple

import torch
from torch import Tensor

from .messages import InputError, short
from .reading import open_regular

#: Files in an archive, bytes of its directory, and characters of a name.
FILES, DIRECTORY, NAME = 100_000, 32 << 20, 512
#: Bytes that the tensors of a small file may have.
SPARE = 64 << 20
#: Levels of dicts and lists, and values in them beyond a file's bytes.
DEPTH, VALUES = 64, 1_000_000
_STATES = ('state_dict', 'ema_state_dict')
_NOTES = ('meta', 'message_hub')
_EXTRA = '_extra_state'
_HOLDERS = (Mapping, list, tuple)


class CheckpointError(InputError):
    """A checkpoint that cannot be read: damaged, or of the wrong kind."""


# ------------------------------------------------------------------ archive


def check_archive(path: str) -> int:
    """Refuse an archive that unpacks to more than itself.

    Args:
        path (str): The file; one that is no archive is let through.

    Returns:
        int: Bytes of the file.

    Raises:
        CheckpointError: If it does; torch compresses code at most.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        if file.read(4) != b'PK\x03\x04':
            return size
        problem = _too_many(file, size)
        try:
            entries = [] if problem else zipfile.ZipFile(file).infolist()
        except Exception as error:  # what changed bytes lead to
            problem = f'its directory is damaged ({error})'
    if not problem and sum(e.file_size for e in entries) > size + SPARE:
        problem = 'it unpacks to more than its size'
    if problem:
        raise CheckpointError(f'{path} is truncated or not a torch checkpoint '
                              f'({problem}): fetch or write it again.')
    return size


def _too_many(file: BinaryIO, size: int) -> Optional[str]:
    """What is wrong with the end of an archive, which counts its files."""
    file.seek(max(0, size - (1 << 16) - 100))
    tail = file.read()
    at = tail.rfind(b'PK\x05\x06')
    if at < 0 or len(tail) - at < 22:
        return 'it has no end'
    files, directory = struct.unpack('<HI', tail[at + 10:at + 16])
    large = tail.rfind(b'PK\x06\x06', 0, at)
    if files == 0xffff or directory == 0xffffffff:
        if large < 0 or at - large < 56:
            return 'it has no end'
        files, directory = struct.unpack('<QQ', tail[large + 32:large + 48])
    if files > FILES or directory > DIRECTORY:
        return f'it holds {files:,} files'
    return None


# ------------------------------------------------------------------ content


def check_content(content: Any, path: str, size: int,
                  on_meta: bool = False) -> None:
    """Refuse what no checkpoint holds.

    Args:
        content: What was read.
        path (str): The file.
        size (int): Its bytes.
        on_meta (bool): Whether tensors were asked for without memory.

    Raises:
        CheckpointError: If weights are no named tensors, notes no notes, or
            tensors are larger than the file.
    """
    total, tensors = 0, _tensors_in(content, path, size)
    for tensor in tensors:
        if tensor.layout != torch.strided or tensor.is_quantized or \
                tensor.is_nested or (tensor.is_meta and not on_meta):
            raise _odd(path, 'a tensor that is sparse, quantized or empty')
        total += tensor.numel() * tensor.element_size()
    if total > 4 * size + SPARE:
        raise _odd(path, f'tensors of {total:,} bytes in {size:,}')
    if len(tensors) > FILES:
        raise _odd(path, f'more than {FILES:,} tensors')
    if isinstance(content, Mapping):
        for part in _STATES:
            if part in content:
                _check_state(content[part], part, path)
        for part in _NOTES:
            if not isinstance(content.get(part), (Mapping, type(None))):
                raise _odd(path, f'a `{part}` that is no dict')
        _check_classes((content.get('meta') or {}).get('dataset_meta'), path)


def _tensors_in(content: Any, path: str, size: int) -> List[Tensor]:
    """All tensors in dicts and lists.

    Raises:
        CheckpointError: If whoever goes through these would not come to an
            end: one may hold another many times over, or itself.
    """
    found: List[Tensor] = []
    known: Dict[int, Tuple[int, int]] = {}  # levels and values in each
    above: Set[int] = set()  # what holds the present one
    left = [content]
    while left:
        value = left[-1]
        if isinstance(value, Tensor):
            found.append(left.pop())
            continue
        if id(value) in known or not isinstance(value, _HOLDERS):
            left.pop()
            continue
        inner = [each for each in _inside(value, path)
                 if isinstance(each, (Tensor, *_HOLDERS))]
        if id(value) not in above:
            above.add(id(value))
            if any(id(each) in above for each in inner):
                raise _odd(path, 'a dict or list that holds itself')
            left += inner
            continue
        sizes = [known.get(id(each), (0, 0)) for each in inner]
        levels = 1 + max((each[0] for each in sizes), default=0)
        values = len(value) + sum(each[1] for each in sizes)
        if levels > DEPTH or values > size + VALUES:
            raise _odd(path, f'{values:,} values on {levels} levels')
        known[id(value)] = levels, values
        above.remove(id(left.pop()))
    return found


def _inside(value: Any, path: str) -> Iterable[Any]:
    if not isinstance(value, Mapping):
        return value
    if any(isinstance(key, str) and len(key) > NAME for key in value):
        raise _odd(path, f'names of more than {NAME} characters')
    return value.values()


def _check_state(state: Any, part: str, path: str) -> None:
    if not isinstance(state, Mapping):
        raise _odd(path, f'a `{part}` that is no dict')
    for name, value in state.items():
        if not isinstance(name, str):
            raise _odd(path, f'a `{part}` with the name {short(name)}')
        if not isinstance(value, Tensor) and not name.endswith(_EXTRA):
            raise _odd(path, f'a `{part}` in which {short(name)} is no tensor')


def _check_classes(meta: Any, path: str) -> None:
    """Names and colours of classes, which tools show."""
    if not isinstance(meta, (Mapping, type(None))):
        raise _odd(path, 'a `dataset_meta` that is no dict')
    for key in ('classes', 'palette'):
        if not isinstance((meta or {}).get(key),
                          (str, list, tuple, type(None))):
            raise _odd(path, f'a `dataset_meta` whose {key} are no list')


def _odd(path: str, what: str) -> CheckpointError:
    return CheckpointError(f'{path} holds {what}, and is no checkpoint that '
                           'can be used: fetch or write it again.')


def check_whole(content: Any, file: str) -> None:
    """Refuse what is no checkpoint of a model.

    Args:
        content: What was read.
        file (str): Its name, for messages.

    Raises:
        CheckpointError: If it holds no weights by name.
    """
    state = content.get('state_dict', content) if isinstance(
        content, Mapping) else None
    if not isinstance(state, Mapping) or not all(
            isinstance(name, str) for name in state) or not any(
                isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f'{file} holds no weights by name, so it is no '
                              'checkpoint of a model; give one that a run '
                              'wrote.')


def state_of(content: Any, file: str) -> Dict[str, Tensor]:
    """The weights of a checkpoint, without a data-parallel prefix.

    See :func:`check_whole` for arguments and errors.
    """
    check_whole(content, file)
    return {
        re.sub(r'^module\.', '', name): value
        for name, value in content.get('state_dict', content).items()
        if isinstance(value, Tensor) or name.endswith(_EXTRA)
    }
