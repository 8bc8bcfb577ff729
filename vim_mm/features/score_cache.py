# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Scores of settings that are kept on disk, for who asks for them again."""

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Union

from torch import Tensor

from vim_mm.utils.files import write_atomic
from vim_mm.utils.reading import read_kept
from vim_mm.version import __version__

#: A setting's weights, or what else it is known by.
Key = Union[str, tuple]
Entry = List[float]


def digest(parts: Iterable[Union[Tensor, str]]) -> str:
    """A name for tensors and words, which changes if one of them does."""
    total = hashlib.sha256(__version__.encode())
    for part in parts:
        if isinstance(part, Tensor):
            total.update(str((part.dtype, tuple(part.shape))).encode())
            part = part.detach().cpu().contiguous().numpy().tobytes()
        total.update(part if isinstance(part, bytes) else part.encode())
    return total.hexdigest()


class ScoreCache:
    """A file of scores, of the same images, trunk and modules.

    Args:
        folder (str | Path, optional): Where files are; nothing is kept on
            disk when None.
        name (str): What the scores depend on, see :func:`digest`.
    """

    def __init__(self, folder: Union[str, Path, None], name: str) -> None:
        self.path: Optional[Path] = None
        self._entries: Dict[str, Entry] = {}
        if folder is not None:
            self.path = Path(folder) / f'{name}.json'
            self._entries = {
                key: entry
                for key, entry in read_kept(self.path).items()
                if _is_entry(entry)
            }

    def get(self, key: Key) -> Optional[Entry]:
        """What was kept, None if nothing was."""
        return self._entries.get(str(key))

    def put(self, key: Key, entry: Entry) -> None:
        """Keep a score, for other processes too."""
        self._entries[str(key)] = entry
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, json.dumps(self._entries))


def _is_entry(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, (int, float)) for each in value)
