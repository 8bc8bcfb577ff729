# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Where cached batches are kept, and how many of them it has room for."""

import logging
import os
import shutil
from itertools import count
from pathlib import Path
from typing import Any, Callable, List, Mapping, Optional, Union

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement
from mmengine.utils import apply_to
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vim_mm.models.layouts import Streams
from vim_mm.utils.files import write_atomic
from vim_mm.utils.memory import free_memory, readable


class Memory:
    """The memory of the machine, which the processes on it share.

    Attributes:
        name (str): What it is called.
        share (float): How much of what is free may be taken.
        thins (bool): Whether a part of what is asked for is of use.
        instead (str): What to do where it is too small.
    """
    name = 'memory'
    share = 0.5
    thins = True
    instead = ('give the hook a `folder` on a disk that has room, or set '
               '`max_batches`')

    def free(self) -> Optional[int]:
        """Bytes that are free for one process, None if unknown."""
        free = free_memory()
        if free is None:
            return None
        processes = os.environ.get('LOCAL_WORLD_SIZE', '')
        return free // int(
            processes if processes.isdigit() else get_world_size())

    def keep(self, features: tuple, samples: list) -> tuple:
        """The features and samples of a batch, as they are kept."""
        return features, samples


class Disk(Memory):
    """A folder, whose files are mapped into memory.

    The system reads and drops their pages as it sees fit. A file loses its
    name as soon as it is mapped, so that it is gone when the process ends,
    however that comes.

    Args:
        folder (str | Path): The folder; made if it is not there.
    """
    share = 0.9
    instead = 'name a `folder` on a larger disk, or set `max_batches`'

    def __init__(self, folder: Union[str, Path]) -> None:
        self.folder = Path(folder)
        self.name = f"the disk of '{folder}'"
        self._numbers = count()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refusal(error) from error

    def free(self) -> int:
        """See :class:`Memory`; processes of other machines may share it."""
        return shutil.disk_usage(self.folder).free // get_world_size()

    def keep(self, features: tuple, samples: list) -> tuple:
        """See :class:`Memory`.

        Raises:
            ValueError: If they cannot be written.
        """
        tensors: List[Tensor] = []

        def collect(tensor: Tensor) -> Tensor:
            tensors.append(tensor)
            return tensor

        for part in (features, samples):
            each_tensor(part, collect)
        mapped = iter(self._map(tensors))
        return tuple(
            each_tensor(part, lambda _: next(mapped))
            for part in (features, samples))

    def _map(self, tensors: List[Tensor]) -> List[Tensor]:
        path = self.folder / f'.{os.getpid()}-{next(self._numbers)}.cache'
        # none may be a view of another
        own = {
            str(index): tensor.clone(memory_format=torch.contiguous_format)
            for index, tensor in enumerate(tensors)
        }
        try:
            write_atomic(path, save(own))
            with safe_open(path, 'pt') as file:
                return [file.get_tensor(name) for name in own]
        except (OSError, SafetensorError) as error:
            raise self._refusal(error) from error
        finally:
            path.unlink(missing_ok=True)

    def _refusal(self, error: Exception) -> ValueError:
        said = getattr(error, 'strerror', None) or error
        return ValueError(f"Features cannot be kept in '{self.folder}' "
                          f'({said}); make room, or name another `folder`.')


class Room:
    """How much of what is to be cached a place has room for.

    The first batch says what one needs. All processes decide alike.

    Args:
        place (Memory): The place.
        views (int): Passes over the data that are asked for.
        batches (int): Batches of a pass that are asked for.

    Attributes:
        views (int): Passes that are made.
        batches (int): Batches of a pass that are taken.
    """

    def __init__(self, place: Memory, views: int, batches: int) -> None:
        self.place = place
        self.views = views
        self.batches = batches
        self._left: Optional[float] = None

    def take(self, size: int) -> bool:
        """Whether there is room for one more batch.

        Args:
            size (int): Its bytes.

        Raises:
            ValueError: If there is none for the first, or not for all where
                all are needed.
        """
        if self._left is None:
            self._plan(size)
        self._left -= size
        if self._left >= 0:
            return True
        said = ('Features are larger than those of the first batch were, and '
                f'{self.place.name} would be full; {self.place.instead}.')
        if not self.place.thins:
            raise ValueError(said)
        print_log(
            f'Caching ends here. {said}',
            logger='current',
            level=logging.WARNING)
        return False

    def _plan(self, size: int) -> None:
        size, free = _agree(size, 'max'), self.place.free()
        # of some processes it may be unknown
        free = _agree(-1 if free is None else free, 'min')
        self._left = float('inf') if free < 0 else free * self.place.share
        wanted = self.views * self.batches
        if wanted * size <= self._left:
            return
        needed = (f'The features of {wanted} batches need about '
                  f'{readable(wanted * size)}, and of {self.place.name} '
                  f'{readable(free)} are free')
        fits = int(self._left // size)
        if not fits or not self.place.thins:
            raise ValueError(f'{needed}; {self.place.instead}.')
        # other images teach more than other views of the same
        self.views = min(self.views, max(1, fits // self.batches))
        self.batches = min(self.batches, fits // self.views)
        print_log(
            f'{needed}: only {self.views} x {self.batches} batches are '
            f'cached, as with `views={self.views}` and '
            f'`max_batches={self.batches}`; for more, {self.place.instead}.',
            logger='current',
            level=logging.WARNING)


def agreed_length(length: int) -> int:
    """How many batches every process has: all must take as many steps."""
    return _agree(length, 'min')


def _agree(number: int, how: str) -> int:
    tensor = torch.tensor(number)
    all_reduce(tensor, op=how)
    return int(tensor)


def each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A nested structure with its tensors changed; elements in place."""

    def changed(leaf: Union[Tensor, BaseDataElement]) -> Any:
        if isinstance(leaf, Tensor):
            return change(leaf)
        leaf.set_data({
            key: changed(inner)
            for key, inner in leaf.items()
            if isinstance(inner, (Tensor, BaseDataElement))
        })
        return leaf

    if isinstance(value, Streams):
        return value.map(lambda stream: each_tensor(stream, change))
    return apply_to(value,
                    lambda leaf: isinstance(leaf, (Tensor, BaseDataElement)),
                    changed)


def size_of(value: Any) -> int:
    """Bytes of the tensors and arrays of a nested structure."""
    if isinstance(value, Streams) and value.read_trunk is not None:
        return sum(map(size_of, value)) + size_of(value.read_trunk())
    if isinstance(value, (list, tuple)):
        return sum(map(size_of, value))
    if isinstance(value, (Mapping, BaseDataElement)):
        return sum(map(size_of, value.values()))
    if hasattr(value, 'masks'):  # mmdet's, of instances
        return size_of(value.masks)
    return getattr(value, 'nbytes', 0)
