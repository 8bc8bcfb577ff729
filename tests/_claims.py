# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Pickles of a few bytes whose length fields, or calls, ask for gigabytes."""

import _codecs
import pickle
import pickletools
import struct
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
import torch


def claim(opcode: bytes, form: str, number: int) -> bytes:
    """A pickle in which an operation claims a number of bytes."""
    return b'\x80\x05' + opcode + struct.pack(form, number) + b'abc'


LARGE = (1 << 30, (1 << 31) - 1)
LARGER = (1 << 31, (1 << 32) - 1)
LARGEST = (1 << 32, 1 << 40, 1 << 62, (1 << 63) - 1, (1 << 64) - 1)
FORMS: Dict[str, tuple] = dict(
    BINBYTES=('<I', LARGE + LARGER),
    BINBYTES8=('<Q', LARGE + LARGEST),
    BYTEARRAY8=('<Q', LARGE + LARGEST),
    BINUNICODE=('<I', LARGE + LARGER),
    BINUNICODE8=('<Q', LARGE + LARGEST),
    BINSTRING=('<i', LARGE + (-1, -(1 << 31))),
    LONG4=('<i', LARGE + (-1, )),
    FRAME=('<Q', LARGE + LARGEST),
    LONG_BINGET=('<I', LARGE + LARGER))
CODES = {each.name: each.code.encode('latin1')
         for each in pickletools.opcodes}
#: Lengths, by what claims them.
LENGTHS = {
    f'{name} {number}': claim(CODES[name], form, number)
    for name, (form, numbers) in FORMS.items() for number in numbers
}
#: Numbers of objects that grow the reader's memory.
MEMO = {
    **{f'LONG_BINPUT {number}': b'\x80\x02]r' + struct.pack('<I', number) +
       b'.' for number in (1 << 24, *LARGE, *LARGER)},
    **{f'PUT {number}': f'(lp{number}\n.'.encode()
       for number in (1 << 24, *LARGER, *LARGEST, 10**40, -1)}
}


class Calls:
    """Unpickling it calls something with a number."""

    def __init__(self, what: Any, *args: Any) -> None:
        self.call = what, args

    def __reduce__(self) -> tuple:
        return self.call


#: Objects that are built from a number, without any data.
RECONSTRUCT, SCALAR = (x.__reduce__()[0] for x in (np.empty(0), np.float64()))
NUMBERS: Dict[str, Any] = dict(
    bytes=Calls(bytes, 1 << 50),
    bytearray=Calls(bytearray, 1 << 34),
    set=Calls(set, range(1 << 32)),
    frozenset=Calls(frozenset, range(1 << 32)),
    array=Calls(np.ndarray, (1 << 50, )),
    array_of_shape=Calls(RECONSTRUCT, np.ndarray, (1 << 34, ), b'b'),
    array_of_objects=Calls(RECONSTRUCT, np.ndarray, (1 << 34, ), b'O'),
    scalar=Calls(SCALAR, np.dtype(f'V{(1 << 31) - 1}')))
CALLS = {
    f'{name}, protocol {protocol}': pickle.dumps(dict(a=[value]), protocol)
    for name, value in NUMBERS.items()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
}
ALL = {**LENGTHS, **MEMO, **CALLS}


class Array:
    """Unpickling it makes an array, and fills it."""

    def __init__(self, dtype: str, shape: tuple, data: Any) -> None:
        self.state = 1, shape, np.dtype(dtype), False, data

    def __reduce__(self) -> tuple:
        return RECONSTRUCT, (np.ndarray, (0, ), b'b'), self.state


DATA, TEXT = bytes(1 << 16), 'x' * (1 << 16)
NUMBERED = list(range(200)) * 40
PAIRS, SHAPE = [[each, 1] for each in range(2000)], tuple(NUMBERED)
#: What is there once, and built of again and again.
COPIES: Dict[str, Callable[[], Any]] = dict(
    bytearray=lambda: Calls(bytearray, DATA),
    bytes=lambda: Calls(bytes, NUMBERED),
    encode=lambda: Calls(_codecs.encode, TEXT, 'latin1'),
    set=lambda: Calls(set, NUMBERED),
    frozenset=lambda: Calls(frozenset, NUMBERED),
    ordered=lambda: Calls(OrderedDict, PAIRS),
    size=lambda: Calls(torch.Size, SHAPE),
    swapped=lambda: Array('>u2', (len(DATA) // 2, ), DATA),
    objects=lambda: Array('O', (len(NUMBERED), ), NUMBERED))
#: Arrays of objects that are not there, and other things without their data.
MISSING: Dict[str, Callable[[], Any]] = {
    **{f'objects {shape}': lambda shape=shape: Array('O', shape, [1, 2])
       for shape in ((3, ), (1, ), (1 << 30, ), (1 << 40, ), (1 << 62, 4),
                     (-2, -1), (2, ) * 70)},
    **{f'tensor {size}': lambda size=size: Calls(
        torch._utils._rebuild_tensor_v2, torch.ones(4).storage(), 0, size,
        (1, ) * len(size), False, OrderedDict())
       for size in ((5, ), (1 << 34, ), (1 << 62, ))},
    'size': lambda: Calls(torch.Size, range(1 << 32)),
    'ordered': lambda: Calls(OrderedDict, range(1 << 32)),
    'counter': lambda: Calls(Counter, range(1 << 32))}


def pickles(protocol: int) -> Dict[str, bytes]:
    """Pickles that build the same often, or what has no data."""
    return {
        **{f'{what} often': pickle.dumps([make() for _ in range(2000)],
                                         protocol)
           for what, make in COPIES.items()},
        **{f'{what} without data': pickle.dumps([make()], protocol)
           for what, make in MISSING.items()}
    }


def as_archive(path: Path, data: bytes) -> None:
    """A checkpoint as of today, with this pickle."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', data)
        archive.writestr('archive/byteorder', 'little')
        archive.writestr('archive/version', '3\n')
