# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Bytes of a zoo: safetensors in memory, folders that appear all at once.

An overwrite (:func:`new_folder`) exchanges the present folder and the new one.
Where the system cannot, it renames the present one to ``.NAME.old`` before the
new one takes its place. A reader that finds a ``.NAME.old`` and no NAME reads
the former, so one complete version can be read at any time. What a change that
was killed leaves is put right by the next change of the zoo.
"""

import errno
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Callable, Dict, Iterable, Iterator, List, Mapping, TypeVar

import safetensors.torch
import torch

from vim_mm.utils import tensor_files
from vim_mm.utils.drafts import confirm
from vim_mm.utils.files import discard, new_folder, share
from vim_mm.utils.reading import OpenFolder
from .card import ZooError, is_name

#: Looks at a folder that may be in exchange.
LOOKS = 10
Read = TypeVar('Read')
_HIDDEN = re.compile(r'\.(.+)\.(?:new|old)')


def pack(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Turn tensors into the bytes of a safetensors file."""
    # a copy of its own for each: safetensors refuses tensors that share memory
    own = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in tensors.items()
    }
    return safetensors.torch.save(own, metadata=dict(format='pt'))


def unpack(data: bytes, path: Path) -> Dict[str, torch.Tensor]:
    """Turn the bytes of a safetensors file into tensors, sorted by name.

    Args:
        data: The bytes.
        path: Where they come from, for the error.

    Raises:
        ZooError: If they are anything else. Nothing is ever unpickled.
    """
    try:
        return tensor_files.unpack(data)
    except tensor_files.TensorFileError as error:
        raise ZooError(f'{str(path)!r} is not a valid safetensors file '
                       f'({error}); get it again from its source.') from None


def check(data: bytes, name: str) -> None:
    """Refuse to write what no reader would take.

    Raises:
        ZooError: If the bytes of a safetensors file are out of its bounds.
    """
    try:
        tensor_files.check(data)
    except tensor_files.TensorFileError as error:
        raise ZooError(f'Module {name!r} cannot be written: {error}.'
                       ) from None


# ------------------------------------------------------------------ reading


def names_in(root: Path) -> List[str]:
    """Names under which there may be a folder: links and leftovers, too.

    Raises:
        OSError: If the directory cannot be read.
    """
    found = set()
    # a name that is in exchange while one listing passes is in the next
    for _ in range(2):
        with os.scandir(root) as entries:
            found.update(map(_name_of, entries))
    return sorted(name for name in found if not name.startswith('.'))


def _name_of(entry: os.DirEntry) -> str:
    """The name that an entry of a zoo stands for; '.' if it is a file.

    Listing tells files from folders, and a zoo may lie among many files.
    """
    try:
        if not entry.is_dir(follow_symlinks=False) and not entry.is_symlink():
            return '.'
    except OSError:  # who looks at it is told
        pass
    hidden = _HIDDEN.fullmatch(entry.name)
    return hidden[1] if hidden else entry.name


def _versions(root: Path, name: str) -> Iterator[Path]:
    """Where NAME may be, the later looks for overwrites that end meanwhile."""
    for _ in range(LOOKS):
        yield root / name
        yield root / f'.{name}.old'


def is_folder(root: Path, name: str) -> bool:
    """Whether NAME is there, though perhaps not readable."""
    for path in _versions(root, name):
        try:
            if stat.S_ISDIR(os.stat(path).st_mode):
                return True
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:  # such as a loop of links
            return True
    return False


def holds_any(root: Path, name: str, files: Iterable[str]) -> bool:
    """Whether NAME holds one of some files, of any kind, or cannot be read."""
    for path in (f'{root}/{name}', f'{root}/.{name}.old', f'{root}/{name}'):
        for file in files:
            try:
                os.lstat(f'{path}/{file}')
                return True
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                return True
    return False


def read_version(root: Path, name: str,
                 read: Callable[[OpenFolder], Read]) -> Read:
    """What is read of NAME, all of it of one version.

    An error counts only if that version is still the one to be read: it may
    have been replaced, or removed, meanwhile.

    Args:
        root: The directory.
        name: Name of the folder.
        read: Reads the open folder; raises a ZooError if it cannot.

    Raises:
        FileNotFoundError: If there is no such folder.
        ZooError: If it may not be read, or see ``read``.
    """
    while True:
        with _open(root, name) as folder:
            try:
                return read(folder)
            except ZooError:
                if _is_current(root, name, folder):
                    raise


def _open(root: Path, name: str) -> OpenFolder:
    """Open a complete version of NAME."""
    for path in _versions(root, name):
        try:
            return OpenFolder(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            mend = 'remove the link' if error.errno == errno.ELOOP else (
                'ask its owner for the right to')
            raise ZooError(f'{str(path)!r} cannot be read ({error.strerror}); '
                           f'{mend}.') from None
    raise FileNotFoundError(f'There is no folder {str(root / name)!r}.')


def _is_current(root: Path, name: str, folder: OpenFolder) -> bool:
    """Whether an open folder is still the version that others find.

    It counts as such where that cannot be told, or a reader would try again
    for ever.
    """
    try:
        if folder.is_at(root / name):
            return True
        with suppress(FileNotFoundError, NotADirectoryError):
            if stat.S_ISDIR(os.stat(root / name).st_mode):
                return False
        return folder.is_at(root / f'.{name}.old')
    except OSError:
        return True


# ------------------------------------------------------------------ writing


def publish(root: Path, name: str, files: Mapping[str, bytes]) -> None:
    """Make ``root/name`` a folder of exactly these files, all or nothing.

    Call it within :func:`.locking.locked`. An older version stays readable
    until the new one is complete. All who may read the zoo may read it.
    """
    _recover(root, name)
    with new_folder(root / name, mark='') as draft:
        for file_name, data in files.items():
            with open(draft / file_name, 'wb') as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            share(draft / file_name, root)
        share(draft, root)


def withdraw(root: Path, name: str) -> None:
    """Remove ``root/name`` in one step; call it within
    :func:`.locking.locked`.
    """
    _recover(root, name)
    doomed = root / f'.{name}.new'
    os.replace(root / name, doomed)
    confirm(root / name)
    with suppress(OSError):  # it is gone; who may clears it away
        discard(doomed)


def sweep(root: Path) -> None:
    """Put right what changes that were killed left."""
    for entry in os.listdir(root):
        hidden = _HIDDEN.fullmatch(entry)
        if hidden and is_name(hidden[1]):
            with suppress(OSError):  # a colleague's, who will
                _recover(root, hidden[1])


def _recover(root: Path, name: str) -> None:
    """Finish or undo a change that a crash interrupted."""
    final, old = root / name, root / f'.{name}.old'
    discard(root / f'.{name}.new')
    if final.is_dir():
        discard(old)
    elif old.is_dir():
        os.replace(old, final)
