# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Bytes of a zoo: safetensors in memory, folders that appear all at once.

An overwrite (:func:`new_folder`) renames the present folder to ``.NAME.old``
before the new one takes its place. A reader that finds a ``.NAME.old`` and no
NAME reads the former, so one complete version can be read at any time.
"""

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, Mapping, Optional

import filelock
import safetensors.torch
import torch
from safetensors import SafetensorError

from vim_mm.utils.files import discard, new_folder, sync_folder
from .card import ZooError

LOCK_SECONDS = 60


def check_writable(root: Path) -> None:
    """Refuse a folder, there or not yet, that cannot be written in.

    Raises:
        ZooError: If it or the first folder above it that exists cannot.
    """
    there = next(p for p in (root.absolute(), *root.absolute().parents)
                 if os.path.exists(p))  # not p.exists(), which may raise
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ZooError(f"The zoo '{root}' cannot be written: {there} is no "
                       'folder that this user may write in; name another.')


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
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ZooError(f'{str(path)!r} is not a valid safetensors file '
                       f'({error}); get it again from its source.') from None
    return dict(sorted(tensors.items()))


def locate(root: Path, name: str) -> Optional[Path]:
    """Return the folder that holds a complete version of NAME, or None."""
    final, old = root / name, root / f'.{name}.old'
    # the second look at `final` is for an overwrite that ends meanwhile
    for folder in (final, old, final):
        if folder.is_dir():
            return folder
    return None


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Let one process at a time change a zoo; a crash frees the lock."""
    check_writable(root)
    root.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(str(root / '.lock'), timeout=LOCK_SECONDS):
            yield
    except filelock.Timeout:
        raise ZooError(f'Another process has been changing the zoo '
                       f'{str(root)!r} for {LOCK_SECONDS} s; try again when '
                       'it has ended.') from None


def publish(root: Path, name: str, files: Mapping[str, bytes]) -> None:
    """Make ``root/name`` a folder of exactly these files, all or nothing.

    Call it within :func:`locked`. An older version stays readable until the
    new one is complete.
    """
    _recover(root, name)
    with new_folder(root / name, mark='') as draft:
        for file_name, data in files.items():
            with open(draft / file_name, 'wb') as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())


def withdraw(root: Path, name: str) -> None:
    """Remove ``root/name`` in one step; call it within :func:`locked`."""
    _recover(root, name)
    doomed = root / f'.{name}.new'
    os.replace(root / name, doomed)
    sync_folder(root)
    discard(doomed)


def _recover(root: Path, name: str) -> None:
    """Finish or undo a change that a crash interrupted."""
    final, old = root / name, root / f'.{name}.old'
    discard(root / f'.{name}.new')
    if final.is_dir():
        discard(old)
    elif old.is_dir():
        os.replace(old, final)
