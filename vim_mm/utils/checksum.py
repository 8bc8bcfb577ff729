# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Checksums inside the files that they are of.

A checkpoint (``.pth``) is a zip archive, whose comment may hold anything: it
ends in the sha256 of all bytes before. A safetensors file has it in its
header, and an ONNX file in its metadata; there it is the sha256 of the file
with zeros in its place. Other readers see ordinary files. Files without a
checksum are anybody's.
"""

import hashlib
import mmap
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO, Iterator, Mapping, Optional, Tuple, Union

import torch
from safetensors.torch import save
from torch import Tensor

from .files import write_atomic

#: What stands in a header of safetensors under its name while it is written.
NAME, BLANK = 'file_sha256', '0' * 64
_MARK = b'vim_mm sha256 '
_MARK_SIZE = len(_MARK) + 64
#: The end of a zip archive, which the comment follows.
_END, _END_SIZE = b'PK\x05\x06', 22
_IN_HEADER = re.compile(NAME.encode() + rb'[\\": ]+(.{64})')
#: A pair of metadata of ONNX; its value begins with its length.
_IN_ONNX = NAME.encode() + b'\x12\x40'
_CHUNK = 1 << 20


def save_checkpoint(checkpoint: Any, path: Union[str, Path]) -> None:
    """Write a checkpoint with its checksum; it appears when it is whole.

    Args:
        checkpoint (dict): What :func:`torch.save` takes.
        path (str | Path): The file; its folder is made if it is missing.
    """

    def write(file: BinaryIO) -> None:
        signed = _Signed(file)
        try:
            torch.save(checkpoint, signed)
        except RuntimeError as error:  # in place of what the disk said
            raise signed.error or error from None
        signed.finish()

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, write)


class _Signed:
    """Passes an archive on to a file, and ends it with its checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.tail = b''
        self.error: Optional[OSError] = None

    def write(self, data: Any) -> int:
        """All but the last bytes, which say how long the comment is."""
        size = len(data)
        if size < _END_SIZE:
            data, self.tail = self.tail + bytes(data), b''
        self._pass_on(self.tail)
        self.tail = bytes(data[-_END_SIZE:])
        self._pass_on(data[:-_END_SIZE])
        return size

    def flush(self) -> None:
        """torch calls it; the end is yet to come."""

    def finish(self) -> None:
        """Write the end of the archive, and the comment."""
        if self.tail[:4] != _END or self.tail[-2:] != b'\0\0':
            raise AssertionError('torch.save wrote no plain zip archive')
        self._pass_on(self.tail[:-2] + struct.pack('<H', _MARK_SIZE))
        self.file.write(_MARK + self.digest.hexdigest().encode())

    def _pass_on(self, data: Any) -> None:
        self.digest.update(data)
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise


def save_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str],
                 path: Union[str, Path]) -> None:
    """Write a safetensors file with its checksum, when it is whole.

    Args:
        tensors (Mapping[str, Tensor]): Each with memory of its own.
        metadata (Mapping[str, str]): The file's own notes, of which one
            value holds ``NAME`` and ``BLANK``, as JSON or as key and value.
        path (str | Path): The file; its folder must exist.
    """
    data = memoryview(save(dict(tensors), dict(metadata)))
    size, = struct.unpack('<Q', data[:8])
    place = _IN_HEADER.search(data, 8, 8 + size).start(1)
    parts = data[:place], BLANK.encode(), data[place + len(BLANK):]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)

    def write(file: BinaryIO) -> None:
        file.write(parts[0])
        file.write(digest.hexdigest().encode())
        file.write(parts[2])

    write_atomic(Path(path), write)


def signed_onnx(content: bytes) -> bytes:
    """An ONNX file whose metadata has ``NAME`` and ``BLANK``, and its sum."""
    place = content.rindex(_IN_ONNX) + len(_IN_ONNX)
    end = place + len(BLANK)
    return content[:place] + hashlib.sha256(
        content).hexdigest().encode() + content[end:]


def is_intact(path: Union[str, Path]) -> Optional[bool]:
    """Whether a file has the bytes that its checksum is of.

    Args:
        path (str | Path): A checkpoint, a safetensors or an ONNX file.

    Returns:
        bool | None: None for a file without a checksum.
    """
    with open(path, 'rb') as file:
        is_archive, place, said = _find(file, path)
        if said is None:
            return None
        digest = hashlib.sha256()
        for chunk in _chunks(file, 0, place):
            digest.update(chunk)
        if not is_archive:
            digest.update(BLANK.encode())
            for chunk in _chunks(file, place + len(BLANK)):
                digest.update(chunk)
    return digest.hexdigest().encode() == said


def has_checksum(path: Union[str, Path]) -> bool:
    """Whether there is one in a file; see :func:`is_intact`."""
    with open(path, 'rb') as file:
        return _find(file, path)[2] is not None


def _find(file: BinaryIO,
          path: Union[str, Path]) -> Tuple[bool, int, Optional[bytes]]:
    """Whether a file is an archive, where its checksum begins, and it."""
    is_archive = file.read(4) == b'PK\x03\x04'
    find = _after_archive if is_archive else _in_header
    if Path(path).suffix == '.onnx':
        find = _in_onnx
    return (is_archive, *find(file))


def _after_archive(file: BinaryIO) -> Tuple[int, Optional[bytes]]:
    """Where the mark begins, and the checksum; b'' if that is damaged."""
    end = file.seek(0, 2)
    place = end - _MARK_SIZE
    file.seek(max(0, place - _END_SIZE))
    last = file.read()
    mark, before = last[-_MARK_SIZE:], last[:-_MARK_SIZE]
    if mark.startswith(_MARK):
        return place, mark[len(_MARK):]
    has_comment = before[:4] == _END and before[-2:] != b'\0\0'
    return 0, b'' if has_comment else None


def _in_header(file: BinaryIO) -> Tuple[int, Optional[bytes]]:
    file.seek(0, 2)
    end = file.tell()
    file.seek(0)
    start = file.read(8)
    size = struct.unpack('<Q', start)[0] if len(start) == 8 else 0
    if size > min(end, 100_000_000):  # more than safetensors allows
        return 0, None
    match = _IN_HEADER.search(file.read(size))
    return (8 + match.start(1), match[1]) if match else (0, None)


def _in_onnx(file: BinaryIO) -> Tuple[int, Optional[bytes]]:
    """Metadata come after the graph, which may hold anything."""
    if not 0 < file.seek(0, 2) < 1 << 31:  # what a protocol buffer holds
        return 0, None
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = data.rfind(_IN_ONNX) + len(_IN_ONNX)
        said = data[place:place + len(BLANK)]
    if place < len(_IN_ONNX) or len(said) < len(BLANK):
        return 0, None
    return place, said


def _chunks(file: BinaryIO, start: int,
            stop: Optional[int] = None) -> Iterator[bytes]:
    position = file.seek(start)
    while stop is None or position < stop:
        chunk = file.read(_CHUNK if stop is None else min(
            _CHUNK, stop - position))
        if not chunk:
            return
        position += len(chunk)
        yield chunk
