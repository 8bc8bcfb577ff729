# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Batches of indices that bring the key of their random numbers along.

It must be importable by the workers of a loader, whatever starts them.
"""

from functools import wraps
from typing import Any, Sequence

from torch.utils.data._utils.fetch import _MapDatasetFetcher

from .seeds import seeded


class KeyedBatch(list):
    """Indices of a batch.

    Args:
        indices (Sequence): The indices.
        key (Sequence[int]): Of the random numbers that loading it draws.
    """

    def __init__(self, indices: Sequence = (), key: Sequence[int] = ()):
        super().__init__(indices)
        self.key = tuple(key)


def _seed_fetches() -> None:
    original = _MapDatasetFetcher.fetch
    if hasattr(original, 'is_seeded'):
        return

    @wraps(original)
    def fetch(self: _MapDatasetFetcher, indices: Any) -> Any:
        if not isinstance(indices, KeyedBatch):
            return original(self, indices)
        with seeded(*indices.key):
            return original(self, indices)

    fetch.is_seeded = True
    _MapDatasetFetcher.fetch = fetch


_seed_fetches()
