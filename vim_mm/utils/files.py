# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The one writer: files and folders that appear all at once, and hashes.

Whatever is to be read again is written through here: first under another
name, flushed to the disk, and then moved into its place. So a reader, and
whoever comes after a crash, finds the old or the new, complete.
"""

import hashlib
import os
import shutil
import stat
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO, Callable, Iterator, Optional, Tuple, Type, Union

from .drafts import (LOCKS, NotFlushedError, confirm, exchange, is_draft,
                     named, open_draft, sync_folder, take_folder)

#: A file's content, or what writes it into the open file.
Content = Union[str, bytes, Callable[[BinaryIO], None]]


def sha256(source: Union[bytes, Path]) -> str:
    """Return the sha256 of bytes or of a file in hexadecimal."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    digest = hashlib.sha256()
    with named(source), source.open('rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_atomic(path: Path,
                 content: Content,
                 draft: Optional[Path] = None) -> None:
    """Write a file so that readers see the old or the new, never half.

    Args:
        path (Path): The file; its folder must exist.
        content (str | bytes | Callable): Its content; text is written as
            UTF-8, and a function is called with the open file.
        draft (Path, optional): A neighbour that nobody else writes; it does
            not stay. Defaults to one that only this process has, or takes
            over from one that was killed.

    Raises:
        OSError: If it cannot be written; the file is what it was.
        NotFlushedError: See :func:`confirm`.
    """
    with named(path):
        if draft is None:
            file, draft = open_draft(path)
        else:
            file = draft.open('wb')
        try:
            # Windows renames and deletes no open file
            with file if not LOCKS else nullcontext():
                _fill(file, content)
            os.replace(draft, path)
        except BaseException:
            with suppress(OSError):  # which would hide the first
                draft.unlink()
            raise
        finally:
            file.close()  # only now may others take the draft's name
    confirm(path)


def _fill(file: BinaryIO, content: Content) -> None:
    if callable(content):
        content(file)
    else:
        file.write(
            content.encode('utf-8') if isinstance(content, str) else content)
    file.flush()
    os.fsync(file.fileno())


def sweep(folder: Path) -> None:
    """Delete the drafts of :func:`write_atomic` that a crash left.

    Only for folders that one process writes.
    """
    for path in folder.iterdir():
        if is_draft(path) and path.is_file():
            path.unlink(missing_ok=True)


@contextmanager
def new_folder(dst: Path,
               error: Optional[Type[Exception]] = None,
               mark: Optional[str] = None) -> Iterator[Path]:
    """A hidden neighbour of ``dst``, moved into its place when all went well.

    Where the system cannot exchange two folders in one step, an older version
    goes through a second neighbour, and comes back if the new one does not
    get there.

    Args:
        dst (Path): The folder to make, or to make anew.
        error (type, optional): What is raised if something is there that is
            no empty folder. Defaults to None, which replaces it.
        mark (str, optional): Tells apart who writes the same folder: the
            neighbours are ``.NAME{mark}.new`` and ``.NAME{mark}.old``.
            Defaults to None, for which this process finds one; a writer that
            holds a lock gives ``''``.

    Yields:
        Path: The empty folder to fill.

    Raises:
        OSError: If it cannot be written; what was there is there.
        NotFlushedError: See :func:`confirm`.
    """
    if error is not None:
        dst = dst.resolve()  # a link to an empty folder stays one
        if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
            raise error(f"'{dst}' is there already: name a new folder")
    with named(dst), _neighbours(dst, mark) as (draft, old):
        try:
            yield draft
            _sync_all(draft)
            _put(draft, dst, old)
        except BaseException as error:
            if old.is_dir() and not dst.is_dir():
                os.replace(old, dst)
            with suppress(OSError):  # which would hide the first
                discard(draft)
            if isinstance(error, NotFlushedError):  # of a file in the draft
                raise error.__cause__ from None
            raise
        confirm(dst)
        for left in (draft, old):
            with suppress(OSError):  # a colleague's, or open elsewhere
                discard(left)


@contextmanager
def _neighbours(dst: Path,
                mark: Optional[str]) -> Iterator[Tuple[Path, Path]]:
    """An empty folder of this process, and where an older version goes."""
    dst.parent.mkdir(parents=True, exist_ok=True)
    handle = None
    if mark is None:
        handle = take_folder(dst.with_name(f'.{dst.name}.new'))
        mark = '' if handle is not None else f'.{os.getpid()}'
    draft = dst.with_name(f'.{dst.name}{mark}.new')
    old = dst.with_name(f'.{dst.name}{mark}.old')
    try:
        if handle is None:
            discard(draft)
            draft.mkdir()
        elif old.is_dir() and not dst.is_dir():  # of a killed process
            os.replace(old, dst)
        yield draft, old
    finally:
        if handle is not None:
            os.close(handle)


def _put(draft: Path, dst: Path, old: Path) -> None:
    """Move a folder into its place; nothing can fail once it is there."""
    if dst.is_dir():
        if exchange(draft, dst):
            return
        discard(old)
        os.replace(dst, old)
    os.replace(draft, dst)


def discard(folder: Path) -> None:
    """Delete a folder, or what stands in its place, if it is there."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)


def share(path: Path, like: Path) -> None:
    """Let all who may read or write a folder do so with what is new in it.

    A colleague's umask would else shut others out of what they share.

    Args:
        path (Path): The new file or folder.
        like (Path): The folder.
    """
    if os.name == 'posix':
        given = stat.S_IMODE(like.stat().st_mode)
        given &= 0o777 if path.is_dir() else 0o666
        os.chmod(path, stat.S_IMODE(path.stat().st_mode) | given)


def _sync_all(folder: Path) -> None:
    """Flush all files of a folder, and all folders in it."""
    if os.name != 'posix':
        return
    for where, _, names in os.walk(folder):
        for name in names:
            with Path(where, name).open('rb') as file:
                os.fsync(file.fileno())
        sync_folder(Path(where))


def shipped(part: str) -> Path:
    """Where ``configs`` or ``tools`` are that came with this package.

    Args:
        part (str): Name of the folder. It is in the package that is
            installed, and beside it in a source tree.
    """
    package = Path(__file__).resolve().parents[1]
    installed = package / '.mim' / part
    return installed if installed.is_dir() else package.with_name(part)
