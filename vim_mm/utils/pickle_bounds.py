# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a pickle claims, compared with what there is of it.

Python takes memory for as many bytes, or numbered objects, as a pickle says
that follow, before it looks for them; and some types make an object of any
size from a number. So a few bytes could ask for more memory than there is.
Here the lengths of a pickle are compared with its own, and what is built of
it is built of what it holds.
"""

import io
import mmap
import pickletools
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import BinaryIO, Iterator, List, Union

from .messages import short

#: By how much the number of an object may be larger than that of objects.
SPARE = 1 << 20


def check_claims(file: BinaryIO) -> int:
    """Refuse a pickle that claims to be longer than it is.

    Args:
        file (BinaryIO): The open file, which is left where it stands.

    Returns:
        int: Its bytes.

    Raises:
        UnpicklingError: If it does, or is none.
    """
    with _bytes_of(file) as data:
        return _walk(data, file.tell()) - file.tell()


@contextmanager
def _bytes_of(file: BinaryIO) -> Iterator[Union[bytes, mmap.mmap]]:
    """The bytes of an open file, from its beginning."""
    if isinstance(file, io.BytesIO):
        yield file.getvalue()
        return
    place = file.tell()
    if isinstance(file, (io.BufferedReader, io.BufferedRandom)):
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # it is empty, or none of the system's
            pass
        else:
            with data:
                yield data
            return
    file.seek(0)
    data = file.read()
    file.seek(place)
    yield data


def _walk(data: Union[bytes, mmap.mmap], place: int) -> int:
    size, puts = len(data), 0
    while place < size:
        code = data[place]
        length = _FIXED[code]
        if length:  # most of them
            place += length
            continue
        if code == _STOP:
            return place + 1
        start = place + 1
        if code in _COUNTED:
            width, signed = _COUNTED[code]
            start += width
            count = int.from_bytes(data[place + 1:start], 'little',
                                   signed=signed)
            if not 0 <= count <= size - start:
                raise UnpicklingError(
                    f'it claims {count:,} bytes at {place:,}, and '
                    f'{max(0, size - start):,} follow')
            place = start + count
        elif code in _LINES:
            for _ in range(_LINES[code]):
                end = data.find(b'\n', start)
                if end < 0:
                    raise UnpicklingError('it ends inside a line')
                line, start = data[start:end], end + 1
            place = start
            if code == _PUT:
                puts += 1
                _check_number(line, puts)
        elif code == _LONG_PUT:
            place += 5
            puts += 1
            if int.from_bytes(data[start:place], 'little') > puts + SPARE:
                _check_number(b'%d' % int.from_bytes(data[start:place],
                                                     'little'), puts)
        else:
            raise UnpicklingError(f'at {place:,} it holds {code:#04x}, which '
                                  'stands for nothing')
    raise UnpicklingError('it has no end')


def _check_number(line: bytes, puts: int) -> None:
    """Compare the number of an object with that of objects so far."""
    digits = line.strip()
    if not digits.isdigit() or len(digits) > 20 or int(
            digits) > puts + SPARE:
        raise UnpicklingError(f'it gives {short(digits)} as the number of its '
                              f'object {puts:,}')


_OPCODES = {ord(each.code): each for each in pickletools.opcodes}
#: The last two have a number that the memory of the reader grows to.
_STOP, _PUT, _LONG_PUT = ord('.'), ord('p'), ord('r')
#: Bytes of a length that follows, and whether it has a sign.
_COUNTED = {
    code: {
        pickletools.TAKEN_FROM_ARGUMENT1: (1, False),
        pickletools.TAKEN_FROM_ARGUMENT4: (4, True),
        pickletools.TAKEN_FROM_ARGUMENT4U: (4, False),
        pickletools.TAKEN_FROM_ARGUMENT8U: (8, False)
    }[each.arg.n]
    for code, each in _OPCODES.items()
    if each.arg is not None and each.arg.n < pickletools.UP_TO_NEWLINE
}
#: Lines that follow.
_LINES = {
    code: 2 if each.arg.name.endswith('pair') else 1
    for code, each in _OPCODES.items()
    if each.arg is not None and each.arg.n == pickletools.UP_TO_NEWLINE
}


def _fixed() -> List[int]:
    """Bytes of each operation of one length; 0 for others."""
    lengths = [0] * 256
    for code, each in _OPCODES.items():
        if code not in {_STOP, _LONG_PUT, *_COUNTED, *_LINES}:
            lengths[code] = 1 + (each.arg.n if each.arg else 0)
    return lengths


_FIXED = _fixed()
