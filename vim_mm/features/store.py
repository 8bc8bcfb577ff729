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
from pathlib import Path
from typing import (Dict, Iterator, List, Mapping, Optional, Sequence, Tuple,
                    Union)

import numpy as np
import torch
from torch import Tensor

from vim_mm.datasets.views import View
from vim_mm.utils.files import write_atomic
from vim_mm.utils.locks import Lock
from vim_mm.utils.reading import ReadError, read_json
from .shards import (LOCK_SECONDS, SUFFIX, StoreError, StoreWriter, float_type,
                     in_one_sentence, own_draft, read_shard)

CARD = 'card.json'


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
        self.dtype = float_type(source['dtype'], 'dtype')
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
        with in_one_sentence(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            with Lock(str(self.root / '.lock'), timeout=LOCK_SECONDS):
                if not self._check_card():
                    write_atomic(self.root / CARD,
                                 json.dumps(self.source, indent=1) + '\n')
            lock, draft = own_draft(self.root)
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
        found = read_shard(path, self.dtype)
        if found is None:
            return  # it was deleted meanwhile
        samples, views, pixels, features = found
        shard = len(self._shards)
        self._files.add(path.name)
        self._shards.append(features)
        self._rows.append(_as_bytes(features))
        for row, (sample, view, digest) in enumerate(
                zip(samples, views.tolist(), pixels.tolist())):
            # two processes may have computed the same
            self._places.setdefault((sample, view), (digest, shard, row))


def _as_bytes(features: Tensor) -> np.ndarray:
    """The memory of features of any number format, a row for each."""
    return features.flatten(1).view(torch.uint8).numpy()


def _short(value: Optional[str]) -> str:
    text = 'none' if value is None else str(value)
    return text if len(text) <= 20 else f'{text[:17]}...'
