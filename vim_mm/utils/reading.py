# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Reading small files that may be a stranger's, within bounds.

What stands under a file's name can be a FIFO, on which a reader waits for
ever, a device, a loop of links, or terabytes of nothing. JSON can be nested
until the interpreter gives up, or hold numbers that no float holds.
"""

import io
import json
import math
import os
import stat
from pathlib import Path
from typing import (Any, BinaryIO, Callable, Dict, List, Mapping, Optional,
                    Tuple, Union)

from .messages import InputError

#: Bytes of a card, a report or a config.
JSON_BYTES = 1 << 20
DEPTH, VALUES = 32, 200_000
#: Bytes of what a program keeps for itself.
KEPT_BYTES = 64 << 20
_LARGEST = 10**300
Check = Callable[[BinaryIO], Any]


class ReadError(InputError):
    """A file that is not what its name promises."""


class UnreadError(ReadError):
    """A file that a disk, or a right that lacks, keeps from being read."""


def open_regular(path: Union[str, Path],
                 limit: Optional[int] = None,
                 dir_fd: Optional[int] = None) -> BinaryIO:
    """Open a regular file, or a link to one, for reading.

    Args:
        path (str | Path): The file.
        limit (int, optional): Bytes that it may have. Defaults to any.
        dir_fd (int, optional): An open folder that ``path`` is relative to.

    Raises:
        FileNotFoundError: If there is none.
        ReadError: If it is something else, too large, or may not be read.
    """

    def opener(name: str, flags: int) -> int:
        # what took the file's place since it was looked at cannot hold us
        return os.open(
            name, flags | getattr(os, 'O_NONBLOCK', 0), dir_fd=dir_fd)

    try:
        # a look first: to open a device can have effects
        _check(os.stat(path, dir_fd=dir_fd), limit)
        file = open(path, 'rb', opener=opener)
        try:
            _check(os.fstat(file.fileno()), limit)
        except ReadError:
            file.close()
            raise
        return file
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadError(f'it cannot be read ({error.strerror})') from None
    except ValueError as error:
        if isinstance(error, ReadError):
            raise
        raise ReadError(f'it has no valid name ({error})') from None


def _check(status: os.stat_result, limit: Optional[int]) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ReadError('it is no regular file')
    if limit is not None and status.st_size > limit:
        raise _too_large(status.st_size, limit)


def _too_large(size: int, limit: int) -> ReadError:
    return ReadError(f'it has {size:,} bytes, and {limit:,} are the most that '
                     'is read')


def read_regular(path: Union[str, Path],
                 limit: int,
                 dir_fd: Optional[int] = None,
                 check: Optional[Check] = None) -> bytes:
    """The bytes of a regular file; see :func:`open_regular`.

    Args:
        path (str | Path): The file.
        limit (int): Bytes that it may have.
        dir_fd (int, optional): An open folder that ``path`` is relative to.
        check (Callable, optional): Looks at the open file before all of it
            is read; raises a ReadError.
    """
    with open_regular(path, limit, dir_fd) as file:
        try:
            if check is not None:
                check(file)
                file.seek(0)
            return file.read(limit)
        except OSError as error:
            raise UnreadError(
                f'it cannot be read ({error.strerror})') from None
        except MemoryError:
            raise ReadError('it does not fit into memory') from None


def read_json(path: Union[str, Path],
              limit: int = JSON_BYTES,
              finite: bool = True,
              values: int = VALUES) -> Any:
    """What a JSON file holds; see :func:`parse_json`.

    Raises:
        FileNotFoundError: If there is none.
        ReadError: If it is no JSON within bounds.
    """
    return parse_json(read_regular(path, limit), finite, values)


def read_kept(path: Path) -> dict:
    """What a program has kept for itself: a JSON object.

    Returns:
        dict: It; empty if there is none, or none that is whole.
    """
    try:
        found = read_json(path, KEPT_BYTES, finite=False, values=KEPT_BYTES)
    except (OSError, ReadError):
        return {}
    return found if isinstance(found, dict) else {}


def parse_json(text: Union[str, bytes],
               finite: bool = True,
               values: int = VALUES) -> Any:
    """Parse JSON, and check that it is within bounds.

    Args:
        text (str | bytes): Of bounded length.
        finite (bool): Whether NaN and infinity are refused. Defaults to True.
        values (int): How many it may hold.

    Raises:
        ReadError: If it is none, or see :func:`check_plain`.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ReadError(f'it is not valid JSON ({error})') from None
    check_plain(value, finite, values)
    return value


def _once(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    """An object; which of two values of a key counts is up to the reader."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError('it says something twice')
    return found


def check_plain(value: Any,
                finite: bool = True,
                values: int = VALUES) -> None:
    """Refuse JSON that later steps could not bear.

    Args:
        value: What was parsed: dicts, lists, text and numbers.
        finite (bool): Whether NaN and infinity are refused. Defaults to True.
        values (int): How many it may hold.

    Raises:
        ReadError: If it is nested too deeply, or holds too many values or a
            number that no float holds.
    """
    level, seen = [value], 0
    for _ in range(DEPTH):
        seen += len(level)
        if seen > values:
            raise ReadError(f'it holds more than {values:,} values')
        inner: list = []
        for each in level:
            if isinstance(each, dict):
                inner += each
                inner += each.values()
            elif isinstance(each, list):
                inner += each
            else:
                _check_number(each, finite)
        level = inner
        if not level:
            return
    raise ReadError(f'it is nested deeper than {DEPTH} levels')


def _check_number(value: Any, finite: bool) -> None:
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ReadError(f'it holds a number of {len(str(value))} digits, '
                        'which is not finite as a float')
    if finite and isinstance(value, float) and not math.isfinite(value):
        raise ReadError(f'it holds the number {value}, which is not finite')


class OpenFolder:
    """A folder that stays the same one, whatever becomes of its path.

    Files are found in the folder that was opened, though another one may have
    taken its place since. Where the system has no open folders (Windows), the
    path stands for it.

    Args:
        path (Path): The folder.

    Raises:
        OSError: If it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: Optional[int] = None
        if os.open in os.supports_dir_fd and os.stat in os.supports_dir_fd:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._status = os.stat(path if self._fd is None else self._fd)
        except OSError:
            self.__exit__()
            raise

    def __enter__(self) -> 'OpenFolder':
        return self

    def __exit__(self, *_: Any) -> None:
        if self._fd is not None:
            os.close(self._fd)

    def read(self,
             name: str,
             limit: int,
             check: Optional[Check] = None) -> bytes:
        """The bytes of a file in it; see :func:`read_regular`."""
        if self._fd is None:
            return read_regular(self.path / name, limit, check=check)
        return read_regular(name, limit, self._fd, check)

    def is_at(self, path: Path) -> bool:
        """Whether a path leads to this very folder.

        Raises:
            OSError: If that cannot be told.
        """
        try:
            return os.path.samestat(os.stat(path), self._status)
        except (FileNotFoundError, NotADirectoryError):
            return False


class HeldFolder(OpenFolder):
    """Files in memory, read as those of a folder are.

    Args:
        path (Path): Where they are from, for messages.
        files (Mapping[str, bytes]): By name.
    """

    def __init__(self, path: Path, files: Mapping[str, bytes]) -> None:
        self.path = path
        self._files = files

    def read(self,
             name: str,
             limit: int,
             check: Optional[Check] = None) -> bytes:
        """The bytes of a file in it; see :func:`read_regular`."""
        if name not in self._files:
            raise FileNotFoundError(f'There is no {name}.')
        data = self._files[name]
        if len(data) > limit:
            raise _too_large(len(data), limit)
        if check is not None:
            check(io.BytesIO(data))
        return data
