# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Who may change a zoo: one process at a time, which is told what fails."""

import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator

import filelock

from vim_mm.utils.drafts import NotFlushedError
from vim_mm.utils.files import share
from vim_mm.utils.locks import Lock
from .base_card import ZooError, ZooNotFlushedError
from .files import sweep

LOCK_SECONDS = 60


def check_writable(root: Path) -> None:
    """Refuse a folder, there or not yet, that cannot be written in.

    Raises:
        ZooError: If it or the first folder above it that exists cannot.
    """
    # not the methods of a path, which may raise
    there = next(p for p in (root.absolute(), *root.absolute().parents)
                 if os.path.exists(p))
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        raise ZooError(f"The zoo '{root}' cannot be written: {there} is no "
                       'folder that this user may write in; name another.')


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Let one process at a time change a zoo; a crash frees the lock.

    What a crash left is cleared away first.
    """
    check_writable(root)
    with _in_one_sentence(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = _lock(root)
        try:
            sweep(root)
            yield
        finally:
            lock.release()


@contextmanager
def _in_one_sentence(root: Path) -> Iterator[None]:
    """Within this context what keeps a zoo from being changed is named."""
    try:
        yield
    except OSError as error:  # the disk is full, a server does not answer
        raise ZooError(
            f"The zoo '{root}' cannot be changed ({error.strerror or error}); "
            'what it held before is whole: try again once that is mended, or '
            'name another.') from error
    except NotFlushedError as error:
        raise ZooNotFlushedError(str(error)) from error.__cause__


def _lock(root: Path) -> filelock.BaseFileLock:
    """The lock of a zoo, taken.

    Raises:
        ZooError: If it cannot be.
    """
    try:
        lock = Lock(_lock_file(root), timeout=LOCK_SECONDS)
        lock.acquire()
        return lock
    except filelock.Timeout:
        raise ZooError(f'Another process has been changing the zoo '
                       f'{str(root)!r} for {LOCK_SECONDS} s; try again when '
                       'it has ended.') from None
    except (OSError, NotImplementedError) as error:
        said = getattr(error, 'strerror', None) or error
        fix = 'delete its file .lock, or name a zoo on another disk'
        if isinstance(error, PermissionError):
            fix = 'ask the owner of its file .lock for the right to write it'
        raise ZooError(f'The lock of the zoo {str(root)!r} cannot be opened '
                       f'({said}); {fix}.') from None


def _lock_file(root: Path) -> str:
    """The lock, which all who may write the zoo may take."""
    path = root / '.lock'
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        share(path, root)
    return str(path)
