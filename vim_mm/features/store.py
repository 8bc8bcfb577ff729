# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Features of frozen networks on disk, by image and view.

A store is a folder: ``card.json`` says what its features were computed from,
and each shard ``SHA256.safetensors`` holds features of one shape and which
views they are of. A shard appears all at once under the hash of its bytes and
is never changed, so any number of processes may read and add. A shard that is
deleted is computed again.
"""

import json
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import (Dict, Iterator, List, Mapping, Optional, Sequence, Tuple,
                    Union)

import filelock
import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from vim_mm.datasets.views import View
from vim_mm.utils.files import sha256, write_atomic
from vim_mm.utils.messages import InputError
from vim_mm.utils.reading import ReadError, read_json
from vim_mm.utils.tensor_files import DTYPES, Header, opened, read_header

CARD, SUFFIX = 'card.json', '.safetensors'
#: Tensors of a shard.
NAMES = ('views', 'pixels', 'features')
#: Bytes that the header of a shard may have, which names its samples.
SHARD_HEADER = 64 << 20
#: Bytes of features that a writer collects before it writes a shard.
SHARD_BYTES = 64 << 20
LOCK_SECONDS = 60


class StoreError(InputError):
    """A store does not fit, or is damaged."""


class FeatureStore:
    """Features of one frozen network.

    Args:
        root (str | Path): The folder, there or not yet.
        source (Mapping[str, str]): All that the features depend on, by name:
            the network, how images reach it, versions of libraries. It has
            the ``dtype`` of features, such as 'float32'.

    Raises:
        StoreError: If the folder holds features from another source,
            something else, or a damaged shard.
    """

    def __init__(self, root: Union[str, Path],
                 source: Mapping[str, str]) -> None:
        self.root = Path(root)
        self.source = dict(source)
        self.dtype: torch.dtype = getattr(torch, source['dtype'])
        self._files: set = set()
        self._shards: List[Tensor] = []
        self._rows: List[np.ndarray] = []  # the same memory
        # of (sample, view): pixels, shard, row
        self._places: Dict[Tuple[str, int], Tuple[int, int, int]] = {}
        self._check_card()
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: Tuple[str, int]) -> bool:
        """Whether there are features of an image's view."""
        return key in self._places

    def known(self, sample: str, view: int) -> View:
        """A view as it was when its features were computed.

        Raises:
            KeyError: If there are none.
        """
        return View(sample, view, self._places[sample, view][0])

    def refresh(self) -> None:
        """Find, and verify, what was added since.

        Raises:
            StoreError: If a shard is damaged.
        """
        for path in sorted(self.root.glob(f'[!.]*{SUFFIX}')):
            if path.name not in self._files:
                self._open(path)

    def read(self, views: Sequence[View]) -> Tensor:
        """Features of some views, (n, ...), in their order.

        Raises:
            StoreError: If one is missing, is of another image, or if they
                are of different shapes.
        """
        places, found = self._places, []
        for sample, view, pixels in views:
            known = places.get((sample, view))
            if known is None or known[0] != pixels:
                raise self._refusal(sample, view, known is not None)
            found.append(known)
        _, shards, rows = zip(*found)
        used = set(shards)
        shapes = {tuple(self._shards[shard].shape[1:]) for shard in used}
        if len(shapes) > 1:
            raise StoreError(
                f"The store '{self.root}' has features of different shapes "
                f'for one batch, {sorted(shapes)}; let the pipeline bring '
                'all images to one size.')
        out = torch.empty((len(found), *shapes.pop()), dtype=self.dtype)
        into = _as_bytes(out)  # NumPy copies a row in a tenth of torch's time
        if len(used) == 1:
            np.take(self._rows[used.pop()], rows, 0, into, 'clip')
            return out
        for index, (shard, row) in enumerate(zip(shards, rows)):
            into[index] = self._rows[shard][row]
        return out

    @contextmanager
    def writer(self) -> Iterator['StoreWriter']:
        """Within this context features can be added.

        What was added before an error is kept. Other processes may write at
        the same time.

        Raises:
            StoreError: If the folder cannot be written, or is full.
        """
        with _one_sentence(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(
                    str(self.root / '.lock'), timeout=LOCK_SECONDS):
                if not self._check_card():
                    write_atomic(self.root / CARD,
                                 json.dumps(self.source, indent=1) + '\n')
            lock, draft = _own_draft(self.root)
        writer = StoreWriter(self.root, draft, self.dtype)
        try:
            yield writer
        finally:
            try:
                writer.flush()
            finally:
                lock.release()
                self.refresh()

    def _refusal(self, sample: str, view: int, known: bool) -> StoreError:
        if not known:
            return StoreError(
                f"The store '{self.root}' has no features of view {view} of "
                f"'{sample}'; let ProxyHook fill it before the training.")
        return StoreError(
            f"The store '{self.root}' has features of view {view} of "
            f"'{sample}', but of other pixels: its file or annotation has "
            'changed, the number of the view is wrong, or a stage of the '
            'pipeline draws numbers that no seed reaches; change that, or '
            'name another folder.')

    def _check_card(self) -> bool:
        """Whether there is a card, and it is of this source."""
        path = self.root / CARD
        try:
            card = read_json(path)
        except FileNotFoundError:
            if self.root.is_dir() and any(self.root.glob('[!.]*')):
                raise StoreError(f"'{self.root}' is no store of features; "
                                 'name a new folder.') from None
            return False
        except ReadError:
            if any(p.is_file() for p in (self.root, *self.root.parents)):
                raise StoreError(f"'{self.root}' lies in, or is, a file; name "
                                 'a folder.') from None
            card = None
        if not isinstance(card, dict):
            raise StoreError(f"'{path}' is damaged; delete the folder, and "
                             'the features are computed again.')
        differ = [
            f'{name} ({_short(card.get(name))}, here '
            f'{_short(self.source.get(name))})'
            for name in {**card, **self.source}
            if card.get(name) != self.source.get(name)
        ]
        if differ:
            raise StoreError(
                f"The store '{self.root}' holds features with another "
                f'{", another ".join(differ)}; name another folder, or '
                'delete this one.')
        return True

    def _open(self, path: Path) -> None:
        try:
            header = read_header(path, SHARD_HEADER)
            if sha256(path) != path.stem:
                raise StoreError
            samples = _samples(header, self.dtype)
            with opened(path) as file:
                views, pixels, features = map(file.get_tensor, NAMES)
        except FileNotFoundError:
            return  # it was deleted meanwhile
        except (OSError, RuntimeError, SafetensorError, ValueError, TypeError,
                KeyError):
            raise StoreError(
                f"'{path}' is damaged; delete it, and the features in it are "
                'computed again.') from None
        shard = len(self._shards)
        self._files.add(path.name)
        self._shards.append(features)
        self._rows.append(_as_bytes(features))
        for row, (sample, view, digest) in enumerate(
                zip(samples, views.tolist(), pixels.tolist())):
            # two processes may have computed the same
            self._places.setdefault((sample, view), (digest, shard, row))


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
            with _one_sentence(self._root):
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
def _one_sentence(root: Path) -> Iterator[None]:
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


def _own_draft(root: Path) -> Tuple[filelock.FileLock, Path]:
    """A lock, and the file that only its holder writes.

    A crash frees the lock, and the next writer overwrites what it left.
    """
    for number in count():
        lock = filelock.FileLock(str(root / f'.writer-{number}.lock'))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            continue
        return lock, root / f'.writer-{number}.draft'


def _as_bytes(features: Tensor) -> np.ndarray:
    """The memory of features of any number format, a row for each."""
    return features.flatten(1).view(torch.uint8).numpy()


def _short(value: Optional[str]) -> str:
    text = 'none' if value is None else str(value)
    return text if len(text) <= 20 else f'{text[:17]}...'
