# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Shards of a feature store: how one is read, and how they are written."""

import json
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import filelock
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from vim_mm.datasets.views import View
from vim_mm.utils.files import sha256, write_atomic
from vim_mm.utils.locks import Lock
from vim_mm.utils.messages import InputError
from vim_mm.utils.tensor_files import (DTYPES, Header, UnreadTensorsError,
                                       opened, read_header)

SUFFIX = '.safetensors'
#: Tensors of a shard.
NAMES = ('views', 'pixels', 'features')
#: Bytes that the header of a shard may have, which names its samples.
SHARD_HEADER = 64 << 20
#: Bytes of features that a writer collects before it writes a shard.
SHARD_BYTES = 64 << 20
LOCK_SECONDS = 60


class StoreError(InputError):
    """A store does not fit, or is damaged."""


def float_type(name: str, where: str) -> torch.dtype:
    """A number format of torch that features keep their digits in.

    Args:
        name (str): Its name, such as 'float32'.
        where (str): Where it stands, for messages.

    Raises:
        ValueError: If there is none such.
    """
    found = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"`{where}` is {name!r}; give 'float32', 'bfloat16' "
                         "or 'float16'.")
    return found


def read_shard(
    path: Path, dtype: torch.dtype
) -> Optional[Tuple[List[str], Tensor, Tensor, Tensor]]:
    """Read and verify a shard.

    Args:
        path (Path): The file.
        dtype (torch.dtype): Number format of features.

    Returns:
        tuple[list[str], Tensor, Tensor, Tensor] | None: Names of its samples,
        numbers of their views, digests of their pixels, and the features,
        mapped into memory; None if it has been deleted meanwhile.

    Raises:
        StoreError: If it is damaged.
    """
    try:
        header = read_header(path, SHARD_HEADER)
        if sha256(path) != path.stem:
            raise StoreError
        samples = _samples(header, dtype)
        with opened(path) as file:
            return samples, *map(file.get_tensor, NAMES)
    except FileNotFoundError:
        return None
    except (OSError, UnreadTensorsError) as error:
        said = getattr(error, 'strerror', None) or error
        raise StoreError(f"'{path}' cannot be read ({said}); check the disk, "
                         'and who may read it.') from None
    except (RuntimeError, SafetensorError, ValueError, TypeError, KeyError):
        raise StoreError(
            f"'{path}' is damaged; delete it, and the features in it are "
            'computed again.') from None


def _samples(header: Header, dtype: torch.dtype) -> List[str]:
    """Names of a shard's samples, once its tensors fit each other.

    Raises:
        ValueError: If they do not.
    """
    views, pixels, features = map(header.shapes.get, NAMES)
    numbers = {header.dtypes[name] for name in NAMES[:2]}
    if len(header.shapes) != len(NAMES) or numbers != {'I64'} or len(
            views) != 1 or views != pixels or len(
                features) < 2 or features[0] != views[0] or 0 in features:
        raise ValueError('its tensors do not fit each other')
    if DTYPES[header.dtypes['features']] != dtype:
        raise ValueError('its features have another number format')
    text = header.metadata['samples']
    # what separates names stands inside of none
    if text.count('", "') + 1 != views[0]:
        raise ValueError('it has another number of names than of rows')
    samples = json.loads(text)
    if not isinstance(samples, list) or len(samples) != views[0] or not all(
            isinstance(sample, str) for sample in samples):
        raise ValueError('its names are no list of text')
    return samples


class StoreWriter:
    """Collects features and writes them in shards."""

    def __init__(self, root: Path, draft: Path, dtype: torch.dtype) -> None:
        self._root = root
        self._draft = draft
        self._dtype = dtype
        self._clear()

    def add(self, views: Sequence[View], features: Tensor) -> None:
        """Add features of some views.

        Args:
            views (Sequence[View]): Of each row.
            features (Tensor): (n, ...), on any device.

        Raises:
            StoreError: If the disk is full.
        """
        if not len(views):
            return  # a shard of none would be called damaged
        features = features.detach().to('cpu', self._dtype)
        self._parts.setdefault(features.shape[1:], []).append(
            (list(views), features))
        self._bytes += features.nbytes
        if self._bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was collected, one shard of each shape.

        Raises:
            StoreError: If the disk is full. Nothing of the shard is there
                then, and what was written before is.
        """
        parts = list(self._parts.values())
        self._clear()
        for part in parts:
            views = [view for some, _ in part for view in some]
            with in_one_sentence(self._root):
                # maps may lie in memory with their channels last
                self._write(views,
                            torch.cat([rows for _, rows in part]).contiguous())

    def _clear(self) -> None:
        self._parts: Dict[tuple, List[Tuple[List[View], Tensor]]] = {}
        self._bytes = 0

    def _write(self, views: List[View], features: Tensor) -> None:
        data = safetensors.torch.save(
            dict(
                features=features,
                views=torch.tensor([view.view for view in views]),
                pixels=torch.tensor([view.pixels for view in views])),
            metadata=dict(
                samples=json.dumps([view.sample for view in views])))
        write_atomic(self._root / f'{sha256(data)}{SUFFIX}', data,
                     self._draft)


@contextmanager
def in_one_sentence(root: Path) -> Iterator[None]:
    """Within this context what keeps a store from being written is named."""
    try:
        yield
    except filelock.Timeout:
        raise StoreError(f"Another process has locked the store '{root}' for "
                         f'{LOCK_SECONDS} s; try again when it has ended.'
                         ) from None
    except OSError as error:
        raise StoreError(
            f"The store '{root}' cannot be written "
            f'({error.strerror or error}); what it held before is kept: make '
            'room, or name another folder.') from error


def own_draft(root: Path) -> Tuple[Lock, Path]:
    """A lock, and the file that only its holder writes.

    A crash frees the lock, and the next writer overwrites what it left.
    """
    for number in count():
        lock = Lock(str(root / f'.writer-{number}.lock'))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            continue
        return lock, root / f'.writer-{number}.draft'
