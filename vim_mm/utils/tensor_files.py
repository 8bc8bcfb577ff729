# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Safetensors files that may be a stranger's.

safetensors checks that a header and its data fit. It takes any number of
tensors, axes and dots in a name, and number formats with which nothing can be
computed; what comes after it would fail on these, or take for ever.
"""

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Dict, Optional, Tuple, Union

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .messages import short
from .reading import ReadError, UnreadError, open_regular

HEADER_BYTES = 8 << 20
TENSORS, AXES, NAME = 50_000, 16, 512
#: Numbers that an empty tensor's other axes may span.
EMPTY = 1 << 24
#: Formats that torch computes with.
FLOATS = dict(
    BF16=torch.bfloat16,
    F16=torch.float16,
    F32=torch.float32,
    F64=torch.float64)
DTYPES = dict(
    FLOATS,
    BOOL=torch.bool,
    I16=torch.int16,
    I32=torch.int32,
    I64=torch.int64,
    I8=torch.int8,
    U8=torch.uint8)


class TensorFileError(ReadError):
    """A file that is no safetensors file within bounds."""


class UnreadTensorsError(TensorFileError):
    """One that cannot be read, whatever it is."""


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself.

    Attributes:
        metadata (dict[str, str]): Its notes.
        shapes (dict[str, tuple[int]]): By tensor.
        dtypes (dict[str, str]): By tensor, such as 'F32'.
    """
    metadata: Dict[str, str]
    shapes: Dict[str, Tuple[int, ...]]
    dtypes: Dict[str, str]


def read_header(path: Union[str, Path],
                limit: int = HEADER_BYTES) -> Header:
    """Read and check a file's header.

    Args:
        path (str | Path): The file.
        limit (int): Bytes that the header may have.

    Raises:
        FileNotFoundError: If there is none.
        TensorFileError: If it is no safetensors file within bounds.
    """
    try:
        with open_regular(path) as file:
            return _parse(file, file.seek(0, 2), limit)
    except (FileNotFoundError, TensorFileError):
        raise
    except UnreadError as error:
        raise UnreadTensorsError(error) from None
    except ReadError as error:
        raise TensorFileError(error) from None
    except OSError as error:  # of reading on
        raise UnreadTensorsError(
            f'it cannot be read ({error.strerror or error})') from None


def load_tensors(path: Union[str, Path]) -> Dict[str, Tensor]:
    """The tensors of a file, on the CPU.

    Raises:
        FileNotFoundError: If there is none.
        TensorFileError: If it is no safetensors file within bounds.
    """
    read_header(path)
    try:
        with opened(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, RuntimeError) as error:
        raise TensorFileError(f'it is damaged ({error})') from None


def opened(path: Union[str, Path]) -> Any:
    """``safe_open``, with one kind of error; read the header first.

    Raises:
        TensorFileError: If safetensors cannot open it.
    """
    try:
        return safe_open(str(path), 'pt')
    except (SafetensorError, OSError) as error:
        raise TensorFileError(f'it is no safetensors file ({error})') from None


def check(file: Union[bytes, BinaryIO]) -> Header:
    """Check the header of an open file, or of its bytes.

    Raises:
        TensorFileError: If it is out of bounds.
    """
    file = BytesIO(file) if isinstance(file, bytes) else file
    return _parse(file, file.seek(0, 2), HEADER_BYTES)


def unpack(data: bytes) -> Dict[str, Tensor]:
    """The tensors in the bytes of a file, sorted by name.

    Raises:
        TensorFileError: If these are none of a safetensors file.
    """
    check(data)
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError,
            AssertionError) as error:
        raise TensorFileError(f'it is damaged ({error})') from None
    return dict(sorted(tensors.items()))


def _parse(file: BinaryIO, size: int, limit: int) -> Header:
    file.seek(0)
    start = file.read(8)
    length = int.from_bytes(start, 'little')
    if length > size - 8 or length < 2:
        raise TensorFileError(
            'it is truncated or no safetensors file' + _hint(start))
    if length > limit:
        raise TensorFileError(f'its header has {length:,} bytes, and '
                              f'{limit:,} are the most that is read')
    text = file.read(length)
    if text.count(b'"dtype"') > TENSORS:
        raise TensorFileError(f'it holds more than {TENSORS:,} tensors')
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TensorFileError(f'its header is not valid JSON ({error})'
                              ) from None
    if not isinstance(entries, dict):
        raise TensorFileError('its header is no JSON object')
    metadata = entries.pop('__metadata__', {})
    if not isinstance(metadata, dict) or not all(
            isinstance(value, str) for value in metadata.values()):
        raise TensorFileError('the notes in its header are no text')
    for name, entry in entries.items():
        problem = _problem(name, entry, size)
        if problem:
            raise TensorFileError(f'its tensor {short(name)} {problem}')
    return Header(
        metadata, {name: tuple(e['shape'])
                   for name, e in entries.items()},
        {name: e['dtype']
         for name, e in entries.items()})


def _hint(start: bytes) -> str:
    """What the first bytes betray."""
    if start[:2] == b'PK' or start[:1] == b'\x80':
        return ': by its first bytes it is a pickle under another name'
    return ''


def _problem(name: str, entry: Any, size: int) -> Optional[str]:
    """What is wrong with the entry of a tensor."""
    if len(name) > NAME:
        return f'has a name of {len(name):,} characters'
    if not isinstance(entry, dict) or not isinstance(
            entry.get('dtype'), str) or not isinstance(
                entry.get('shape'), list):
        return 'says neither its dtype nor its shape'
    shape = entry['shape']
    if not all(type(axis) is int and axis >= 0 for axis in shape):
        return f'has the shape {short(shape)}'
    if entry['dtype'] not in DTYPES:
        return (f'has the dtype {short(entry["dtype"])}, which is not read; '
                'write it as float32')
    if len(shape) > AXES:
        return f'has {len(shape)} axes'
    span = 1
    for axis in shape:
        span *= axis or 1
    if span > (size if 0 not in shape else EMPTY):
        return f'has the shape {short(shape)}, and there are no such data'
    return None
