# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Names under which files and folders are written before they get theirs.

What a killed process left is taken over by the next that writes the same: a
draft is locked for as long as its writer lives.
"""

import ctypes
import errno
import os
import re
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Iterator, Optional, Tuple

from .messages import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: Whether drafts can be locked, and open files renamed.
LOCKS = fcntl is not None
_DRAFT = re.compile(r'\..+\.\d+\.draft')
#: A folder, and not what a link leads to.
_FOLDER = os.O_RDONLY | getattr(os, 'O_NOFOLLOW', 0) | getattr(
    os, 'O_DIRECTORY', 0)
#: What folders answer that cannot be flushed, or not by this user.
_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS,
             errno.EBADF, errno.EACCES, errno.EPERM)


class NotFlushedError(InputError):
    """A change that was made, of which a disk has not said that it stays."""


def open_draft(path: Path) -> Tuple[BinaryIO, Path]:
    """An empty neighbour of a file, which no other process writes, open.

    It has the same name each time, so that what a killed process left is
    taken over, and another one where two write a file at the same time, or
    the disk locks nothing.
    """
    draft = path.with_name(f'.{path.name}.0.draft')
    file = _take_file(draft) if LOCKS else None
    if file is None:
        draft = path.with_name(f'.{path.name}.{os.getpid()}.draft')
        file = draft.open('wb')
    return file, draft


def _take_file(draft: Path) -> Optional[BinaryIO]:
    """Make a file, or empty what a killed process left, open and locked."""
    file, made = None, True
    try:
        try:
            file = open(draft, 'x+b')
        except FileExistsError:
            file, made = open(draft, 'r+b', opener=_no_link), False
        if _is_ours(file.fileno(), draft):
            file.truncate(0)
            return file
    except OSError:
        if file is not None and made:
            with suppress(OSError):
                draft.unlink()
    if file is not None:
        file.close()
    return None


def _no_link(path: str, flags: int) -> int:
    """Open a file, but not what a link leads to."""
    return os.open(path, flags | getattr(os, 'O_NOFOLLOW', 0))


def take_folder(folder: Path) -> Optional[int]:
    """Make a folder, or empty what a killed process left, and lock it.

    Returns:
        int | None: Its handle; None if another process has it, or the disk
        locks nothing.
    """
    if not LOCKS:
        return None
    handle, made = None, False
    try:
        with suppress(FileExistsError):
            folder.mkdir()
            made = True
        handle = os.open(folder, _FOLDER)
        if _is_ours(handle, folder):
            _empty(folder)
            return handle
    except OSError:
        if made:
            with suppress(OSError):
                folder.rmdir()
    if handle is not None:
        os.close(handle)
    return None


def _empty(folder: Path) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def _is_ours(handle: int, path: Path) -> bool:
    """Whether an open file or folder is what has a name, and locked now.

    Its lock ends with whoever has it open, however that comes.

    Raises:
        OSError: If it cannot be locked.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # another process has it
        return False
    return os.path.samestat(os.fstat(handle), os.stat(path))


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Within this context errors name a file: those of writing do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.strerror:
            error.filename = str(path)
        raise


def is_draft(path: Path) -> bool:
    """Whether something has a name that :func:`write_atomic` gives."""
    return _DRAFT.fullmatch(path.name) is not None


def exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; False if that cannot be."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # it is Linux's own
        return False
    here, exchange = -100, 2
    return rename(here, os.fsencode(one), here, os.fsencode(other),
                  exchange) == 0


def confirm(path: Path) -> None:
    """Flush the name of what has just got its place, or lost it.

    Raises:
        NotFlushedError: If the disk fails at that. The change can be seen,
            and may be undone by a power cut.
    """
    try:
        sync_folder(path.parent)
    except OSError as error:
        raise NotFlushedError(
            f"'{path}' is changed as was asked, and whole, but the disk "
            f'failed to confirm it ({error.strerror or error}), so a power '
            'cut may undo the change; check the disk.') from error


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, where the system can (Windows cannot).

    Raises:
        OSError: If it can, and fails.
    """
    if os.name != 'posix':
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise
