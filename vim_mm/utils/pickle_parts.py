# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What pickles may call while they are read.

Some types make an object of any size from a number, and a pickle may name a
text or a list of megabytes as often as it likes. What is built here is built
of what the file holds, and not many times of the same.
"""

import gc
import math
import os
from collections import Counter, OrderedDict
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any, Callable, Dict, Iterator

from .messages import short
from .pickle_bounds import SPARE

#: What stands for the type of arrays, which one part alone may build.
NDARRAY = object()
_HOLDERS = (str, bytes, bytearray, list, tuple, set, frozenset, dict)
#: A call itself takes some bytes, and axes that arrays may have.
_SHORT, _AXES = 64, 64

# ------------------------------------------------------------------- budget


@contextmanager
def uncollected() -> Iterator[None]:
    """Within this context Python looks for no garbage.

    Of many new objects it would look at all again and again, which takes as
    long as to read them.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def size_of(file: Any) -> int:
    """Bytes of a file, by its name; of an open one those that follow."""
    if not hasattr(file, 'seek'):
        return os.path.getsize(file)
    place = file.tell()
    size = file.seek(0, os.SEEK_END) - place
    file.seek(place)
    return size


class Budget:
    """What a pickle may have built of what it holds.

    It may name a text or a list of megabytes as often as it likes, and each
    time something is built of it. Honest ones do so once or twice.

    Args:
        size (int): Bytes of the pickle.
    """

    def __init__(self, size: int) -> None:
        self._left = 4 * size + SPARE

    def take(self, number: int) -> None:
        """Note that something is built of so many values.

        Raises:
            UnpicklingError: If that is more than there may be.
        """
        self._left -= number
        if self._left < 0:
            raise UnpicklingError('it builds far more than it holds')


class Part:
    """What a pickle may call; it can neither be changed nor be made anew.

    Args:
        build (Callable): What is called.
        budget (Budget): What it takes from.
    """
    __slots__ = '_build', '_budget'

    def __init__(self, build: Callable, budget: Budget) -> None:
        self._build, self._budget = build, budget

    def __call__(self, *args: Any) -> Any:
        for arg in args:
            # a call takes some bytes itself
            if isinstance(arg, _HOLDERS) and len(arg) > _SHORT:
                self._budget.take(len(arg))
        return self._build(*args)

    def __setstate__(self, state: Any) -> None:
        raise UnpicklingError('a change of what builds objects is refused')


class Unfilled:
    """Stands for all arrays of a file while they are counted.

    Args:
        budget (Budget): What it takes from.
    """
    __slots__ = '_budget',

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def of(self, kind: Any, shape: Any, code: Any) -> 'Unfilled':
        """An array, which is filled afterwards."""
        _check_empty(kind, shape)
        return self

    def __setstate__(self, state: Any) -> None:
        shape, _, _, data = state[-4:]
        if len(data) > _SHORT:
            self._budget.take(len(data))
        # of bytes numpy compares it itself
        if isinstance(data, list) and (
                len(shape) > _AXES or math.prod(shape) != len(data)):
            raise UnpicklingError(f'an array of the shape {short(shape)} of '
                                  f'{len(data):,} objects is refused')


def _check_empty(kind: Any, shape: Any) -> None:
    if kind is not NDARRAY or shape != (0, ):
        raise UnpicklingError(f'an array of the shape {short(shape)} without '
                              'data is refused')


# -------------------------------------------------------------------- parts


def of_content(build: Callable) -> Callable:
    """A type that is built of text, bytes or a holder, and of no number.

    Args:
        build (Callable): Such as ``bytearray``.
    """

    def built(*args: Any) -> Any:
        if args and not isinstance(args[0], _HOLDERS):
            raise UnpicklingError(f'{build.__name__} of {short(args[0])} is '
                                  'refused')
        return build(*args)

    return built


def encode(text: str, *_: Any) -> bytes:
    """Bytes, as pickles of protocol 2 hold them."""
    return text.encode('latin1')


def reconstruct(kind: Any, shape: Any, code: Any) -> Any:
    """An empty array, which is filled afterwards."""
    import numpy as np
    _check_empty(kind, shape)
    return np.ndarray((0, ), np.int8)


def number_builder() -> Callable:
    """What builds a number of numpy's, of its type and bytes.

    numpy says itself what its pickles name: numpy 2 moved it, and numpy 1.26
    has the new place by name alone.
    """
    import numpy as np
    build = np.float64().__reduce__()[0]
    return lambda dtype, data: build(dtype, data)


#: Of Python's own parts, by the names in pickles.
PARTS: Dict[str, Callable] = {
    '_codecs.encode': encode,
    **{
        f'builtins.{each.__name__}': of_content(each)
        for each in (bytearray, bytes, frozenset, set)
    }
}


@contextmanager
def bounded_parts(size: int) -> Iterator[None]:
    """Within this context torch's restricted reader builds with these parts.

    It takes no others for those that it allows by itself.

    Args:
        size (int): Bytes of what it reads.
    """
    import torch
    known = torch._weights_only_unpickler._get_allowed_globals()
    parts = {
        **PARTS, 'torch.Size': of_content(torch.Size),
        **{f'collections.{each.__name__}': of_content(each)
           for each in (Counter, OrderedDict)}
    }
    before = {name: known[name] for name in parts if name in known}
    budget = Budget(size)
    known.update((name, Part(parts[name], budget)) for name in before)
    try:
        yield
    finally:
        known.update(before)
