# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Readers of pickles and YAML files that run no code found in them.

mmengine reads annotations, proposals and predictions from ``.pkl`` files, and
configs from ``.yml`` files, with readers that build any object a file names.
Those here build plain data: numbers, text, containers, arrays and tensors.
They take their places while mmengine is being imported, so this file imports
nothing of it above.
"""

import builtins
import collections
import io
import logging
import os
import pickle
import sys
from functools import partial, wraps
from types import ModuleType
from typing import Any, BinaryIO, Callable, Dict, Optional

import yaml

from .pickle_bounds import check_claims
from .pickle_parts import (NDARRAY, PARTS, Budget, Part, Unfilled,
                           bounded_parts, number_builder, of_content,
                           reconstruct, uncollected)

TRUST_ENV = 'VIM_MM_TRUST_PICKLE'
#: How files are called whose readers do not know their names.
_UNNAMED = 'The file'


class UnsafeFileError(ValueError):
    """A file that asks for objects beyond plain data."""


def replace_everywhere(name: str, original: Callable, new: Callable) -> None:
    """Put a function in another's place in all modules that hold it.

    Args:
        name (str): What the modules call it.
        original (Callable): The one they hold.
        new (Callable): The one they shall hold.
    """
    for module in list(sys.modules.values()):
        if getattr(module, '__dict__', {}).get(name) is original:
            setattr(module, name, new)


def register_readers() -> None:
    """Put the readers in place of mmengine's. Idempotent."""
    from mmengine.fileio import io as mmengine_io
    from mmengine.fileio.handlers import PickleHandler, YamlHandler
    PickleHandler.load_from_fileobj = staticmethod(load_plain)
    YamlHandler.load_from_fileobj = _load_yaml
    original = mmengine_io.load
    if hasattr(original, 'names_files'):
        return

    @wraps(original)
    def load(file: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(file, *args, **kwargs)
        except UnsafeFileError as error:
            said = str(error).replace(_UNNAMED, str(file), 1)
            raise UnsafeFileError(said) from None

    load.names_files = True
    replace_everywhere('load', original, load)


def restrict_pickles(module: str) -> None:
    """Let a module's own ``pickle`` read plain data."""
    sys.modules[module].pickle = _Instead(
        pickle,
        load=load_plain,
        loads=lambda data, **kwargs: load_plain(io.BytesIO(data), **kwargs))


def restrict_arrays(module: str) -> None:
    """Let a module read arrays of objects, which are pickles, if trusted."""
    holder: ModuleType = sys.modules[module]
    numpy = holder.np
    if isinstance(numpy, _Instead):
        return

    def load(file: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return numpy.load(file, *args, **dict(kwargs, allow_pickle=False))
        except MemoryError:
            raise _too_large(file) from None
        except ValueError:
            _check_trusted(f'{file} is a pickle of arrays')
        return numpy.load(file, *args, **kwargs)

    holder.np = _Instead(numpy, load=load)


class _Instead:
    """A module with some functions exchanged."""

    def __init__(self, module: ModuleType, **others: Callable) -> None:
        self._module = module
        vars(self).update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def trusts_pickles() -> bool:
    """Whether the user has allowed pickles to run code."""
    return os.environ.get(TRUST_ENV) == '1'


def torch_reads_safely() -> bool:
    """Whether torch's restricted reader can run no code (CVE-2025-32434)."""
    import torch
    return tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 6)


def _check_trusted(what: str) -> None:
    """Go on if the user has allowed pickles to run code, and say so.

    Raises:
        UnsafeFileError: If not.
    """
    from mmengine.logging import print_log
    if not trusts_pickles():
        raise UnsafeFileError(
            f'{what}, which can run any code. It was not loaded: if you trust '
            f'where it comes from, set {TRUST_ENV}=1.') from None
    print_log(
        f'{TRUST_ENV}=1: reading it UNSAFELY, though {what} and can run any '
        'code.',
        logger='current',
        level=logging.WARNING)


# ------------------------------------------------------------------- pickle


def load_plain(file: BinaryIO, **kwargs: Any) -> Any:
    """``pickle.load`` for plain data.

    Args:
        file (BinaryIO): The open file.
        **kwargs: As of :func:`pickle.load`.

    Raises:
        UnsafeFileError: If it would build anything else, or is damaged.
    """
    name, start = getattr(file, 'name', _UNNAMED), file.tell()
    reader = None
    try:
        size = check_claims(file)
        for fill in (None, False, True):
            file.seek(start)
            reader = _Plain(file, size, fill, **kwargs)
            try:
                with uncollected():
                    found = reader.load()
            except _UncountedError:
                continue
            if fill is not False:
                return found
            found = None  # its memory is needed
    except MemoryError:
        raise _too_large(name) from None
    except Exception as error:  # bytes that changed raise any kind
        if reader is None or reader.refused is None:
            raise UnsafeFileError(
                f'{name} is truncated or no pickle ({error}); get or write '
                'it again.') from error
    _check_trusted(f'{name} would build {reader.refused} while it is read')
    file.seek(start)
    return pickle.load(file, **kwargs)


def _too_large(name: Any) -> UnsafeFileError:
    return UnsafeFileError(f'{name} does not fit into memory, or claims to '
                           'hold more than it does; get or write it again.')


class _UncountedError(Exception):
    """What is filled after it was built has not been counted yet."""


class _Plain(pickle.Unpickler):
    """Builds plain data, and notes what it refuses to build.

    Args:
        file (BinaryIO): The open file.
        size (int): Bytes of its pickle.
        fill (bool, optional): Whether arrays and tensors are built, or only
            counted. Defaults to neither, which ends at the first one.
        **kwargs: As of :class:`pickle.Unpickler`.
    """

    def __init__(self, file: BinaryIO, size: int, fill: Optional[bool] = None,
                 **kwargs: Any) -> None:
        super().__init__(file, **kwargs)
        self.refused, self._fill, self._budget = None, fill, Budget(size)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ('numpy', 'ndarray'):
            return NDARRAY
        build = self._build(module, name)
        # what has been counted once needs no watch
        return build if self._fill else Part(build, self._budget)

    def _build(self, module: str, name: str) -> Callable:
        if module in ('builtins', '__builtin__') and name in _BUILTINS:
            name = name.replace('xrange', 'range')
            return PARTS.get(f'builtins.{name}') or getattr(builtins, name)
        if (module, name) not in _PLAIN:
            self.refused = f'{module}.{name}'
            raise pickle.UnpicklingError(f'{self.refused} is refused')
        if name in _FILLED and not self._fill:
            if self._fill is None:
                raise _UncountedError
            return _FILLED[name](self._budget)
        return _PLAIN[module, name]()


#: What stands for those while they are counted. Tensors are never changed.
_FILLED: Dict[str, Callable] = dict(
    _reconstruct=lambda budget: Unfilled(budget).of,
    _rebuild_tensor_v2=lambda budget: lambda *_: object(),
    _load_from_bytes=lambda budget: lambda *_: None)


def _array_part(name: str) -> Any:
    """As numpy itself names them when it pickles.

    numpy 2 moved these, and numpy 1.26 has its places by name alone.
    """
    import numpy as np
    if name == 'dtype':
        return np.dtype
    if name == '_frombuffer':
        return np.zeros(1).__reduce_ex__(5)[0]
    return number_builder()


def _tensor_part(name: str) -> Any:
    import torch

    def load(data: bytes) -> Any:
        if not torch_reads_safely():
            raise pickle.UnpicklingError('tensors need torch >= 2.6')
        with bounded_parts(len(data)):
            return torch.load(io.BytesIO(data), weights_only=True)

    def rebuild(storage: Any, offset: int, size: tuple, stride: tuple,
                *more: Any) -> Any:
        # torch would make the storage as large as this asks for
        last = offset + sum((n - 1) * s for n, s in zip(size, stride))
        if 0 not in size and last >= storage.size():
            raise pickle.UnpicklingError('it holds a tensor without its data')
        return torch._utils._rebuild_tensor_v2(storage, offset, size, stride,
                                               *more)

    return dict(
        Size=of_content(torch.Size),
        _rebuild_tensor_v2=rebuild,
        # the original would read the bytes, a pickle, without restrictions
        _load_from_bytes=load)[name]


_BUILTINS = ('bytearray', 'bytes', 'complex', 'frozenset', 'range', 'set',
             'slice', 'xrange')
#: What plain data is made of beside them, by the names in pickles.
_PLAIN = {
    ('_codecs', 'encode'): lambda: PARTS['_codecs.encode'],
    ('collections', 'OrderedDict'):
    lambda: of_content(collections.OrderedDict),
    ('numpy', 'dtype'): partial(_array_part, 'dtype'),
    ('torch', 'Size'): partial(_tensor_part, 'Size'),
    ('torch._utils', '_rebuild_tensor_v2'):
    partial(_tensor_part, '_rebuild_tensor_v2'),
    ('torch.storage', '_load_from_bytes'):
    partial(_tensor_part, '_load_from_bytes'),
    **{(f'numpy.{core}.{part}', name): partial(_array_part, name)
       for core in ('core', '_core') for part, name in (
           ('multiarray', 'scalar'), ('numeric', '_frombuffer'))},
    **{(f'numpy.{core}.multiarray', '_reconstruct'): lambda: reconstruct
       for core in ('core', '_core')},
}

# --------------------------------------------------------------------- YAML


def _load_yaml(handler: Any, file: Any, **kwargs: Any) -> Any:
    kwargs.setdefault('Loader', getattr(yaml, 'CSafeLoader', yaml.SafeLoader))
    try:
        return yaml.load(file, **kwargs)
    except yaml.constructor.ConstructorError as error:
        raise UnsafeFileError(
            f'{getattr(file, "name", _UNNAMED)} asks for more than plain data '
            f'({error.problem}), which could run any code; write it without '
            'such tags, or as a .py file that you trust.') from None
