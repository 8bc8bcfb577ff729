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
from typing import Any, BinaryIO, Callable

import yaml

from .pickle_bounds import (NDARRAY, PARTS, bounded_parts, check_claims,
                            reconstruct, scalar_of)

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
    PickleHandler.load_from_fileobj = _load_pickle
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
    reader = _Plain(file, **kwargs)
    try:
        check_claims(file)
        return reader.load()
    except MemoryError:
        raise _too_large(name) from None
    except Exception as error:  # bytes that changed raise any kind
        if reader.refused is None:
            raise UnsafeFileError(
                f'{name} is truncated or no pickle ({error}); get or write '
                'it again.') from error
    _check_trusted(f'{name} would build {reader.refused} while it is read')
    file.seek(start)
    return pickle.load(file, **kwargs)


def _too_large(name: Any) -> UnsafeFileError:
    return UnsafeFileError(f'{name} does not fit into memory, or claims to '
                           'hold more than it does; get or write it again.')


def _load_pickle(handler: Any, file: BinaryIO, **kwargs: Any) -> Any:
    return load_plain(file, **kwargs)


class _Plain(pickle.Unpickler):
    """Builds plain data, and notes what it refuses to build."""

    refused = None

    def find_class(self, module: str, name: str) -> Any:
        if module in ('builtins', '__builtin__') and name in _BUILTINS:
            name = name.replace('xrange', 'range')
            return PARTS.get(f'builtins.{name}') or getattr(builtins, name)
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]()
        self.refused = f'{module}.{name}'
        raise pickle.UnpicklingError(f'{self.refused} is refused')


def _array_part(name: str) -> Any:
    """numpy 2 moved these; files of either version name them their own way."""
    import numpy as np
    core = np._core if hasattr(np, '_core') else np.core
    if name == '_frombuffer':
        return core.numeric._frombuffer
    return scalar_of(core.multiarray.scalar)


def _tensor_part(name: str) -> Any:
    import torch

    def load(data: bytes) -> Any:
        if not torch_reads_safely():
            raise pickle.UnpicklingError('tensors need torch >= 2.6')
        with bounded_parts():
            return torch.load(io.BytesIO(data), weights_only=True)

    return dict(
        Size=torch.Size,
        _rebuild_tensor_v2=torch._utils._rebuild_tensor_v2,
        # the original would read the bytes, a pickle, without restrictions
        _load_from_bytes=load)[name]


def _dtype() -> Any:
    import numpy as np
    return np.dtype


_BUILTINS = ('bytearray', 'bytes', 'complex', 'frozenset', 'range', 'set',
             'slice', 'xrange')
#: What plain data is made of beside them, by the names in pickles.
_PLAIN = {
    ('_codecs', 'encode'): lambda: PARTS['_codecs.encode'],
    ('collections', 'OrderedDict'): lambda: collections.OrderedDict,
    ('numpy', 'dtype'): _dtype,
    ('numpy', 'ndarray'): lambda: NDARRAY,
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
