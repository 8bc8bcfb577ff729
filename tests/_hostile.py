# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Files and folders that are not what their names promise.

All of them are harmless: they are refused, or would be too large by a little.
"""

import json
import os
import pickle
import shutil
import struct
import time
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import torch
from safetensors.torch import save
from torch import Tensor

from vim_mm.utils.cli import is_user_error
from vim_mm.utils.files import sha256
from vim_mm.utils.messages import InputError
from vim_mm.utils.reading import DEPTH, JSON_BYTES
from vim_mm.utils.tensor_files import AXES, NAME

#: What a reader may take: seconds of a CPU, and of a busy machine's clock.
SECONDS, PATIENCE, MEGABYTES = 2., 30., 200.
#: What a slow machine may take of these seconds; `make reliability`, which
#: measures the promise, sets it to one.
SLACK = 2.
ESCAPE = '\x1b[31mred\x1b[0m\x07\x9b'
#: Values of the wrong type, or out of range.
ODD_VALUES: Dict[str, Any] = dict(
    null=None,
    true=True,
    text='text',
    escape=ESCAPE,
    long='x' * 5000,
    number=3,
    negative=-1,
    zero=0,
    digits=10**400,
    large=10**15,
    real=0.5,
    nothing=[],
    empty={},
    numbers=[1, 2],
    texts=['a', 'b'],
    mapping=dict(a=1),
    nested=[[[]]])

# ------------------------------------------------------------ safetensors


def with_header(data: bytes, change: Callable[[dict], Any]) -> bytes:
    """A safetensors file with another header."""
    size, = struct.unpack('<Q', data[:8])
    header = json.loads(data[8:8 + size])
    changed = change(header)
    return as_file(json.dumps(header if changed is None else changed),
                   data[8 + size:])


def as_file(header: Any, data: bytes = b'') -> bytes:
    """A header's text, and data, as a file."""
    text = header.encode()
    return struct.pack('<Q', len(text)) + text + data


def _first(header: dict) -> dict:
    return header[next(k for k in header if k != '__metadata__')]


def _set(**fields: Any) -> Callable[[bytes], bytes]:

    def change(data: bytes) -> bytes:
        return with_header(data, lambda header: _first(header).update(fields))

    return change


def _rename(name: str) -> Callable[[bytes], bytes]:

    def rename(header: dict) -> None:
        old = next(k for k in header if k != '__metadata__')
        header[name] = header.pop(old)

    return lambda data: with_header(data, rename)


def _other(**tensors: Tensor) -> Callable[[bytes], bytes]:
    return lambda data: save(tensors)


def _checkpoint(data: bytes) -> bytes:
    buffer = BytesIO()
    torch.save(dict(state_dict={}), buffer)
    return buffer.getvalue()


#: Each turns the bytes of a good file into those of a bad one.
TENSOR_FILES: Dict[str, Callable[[bytes], bytes]] = dict(
    nothing=lambda data: b'',
    short=lambda data: data[:7],
    no_header=lambda data: data[:8],
    cut_header=lambda data: data[:20],
    cut_data=lambda data: data[:-3],
    longer=lambda data: data + b'\0' * 9,
    no_json=lambda data: as_file('{'),
    header_list=lambda data: as_file('[]'),
    header_number=lambda data: as_file('31'),
    header_deep=lambda data: as_file('[' * 5000),
    header_long=lambda data: struct.pack('<Q', 1 << 40) + data[8:],
    notes=lambda data: with_header(data, lambda h: h.update(
        __metadata__=dict(a=1))),
    entry=lambda data: with_header(data, lambda h: h.update(x=3)),
    no_shape=lambda data: with_header(data, lambda h: _first(h).pop('shape')),
    dtype=_set(dtype='F8_E4M3'),
    dtype_unknown=_set(dtype='Q7'),
    dtype_number=_set(dtype=3),
    dtype_wide=_set(dtype='F64'),
    shape_text=_set(shape='abc'),
    shape_of_text=_set(shape=['1', '2']),
    shape_real=_set(shape=[1.5]),
    shape_negative=_set(shape=[-1, -4]),
    shape_huge=_set(shape=[1 << 62, 8]),
    shape_empty=_set(shape=[0, 1 << 40]),
    axes=_set(shape=[1] * (AXES + 1)),
    offsets=_set(data_offsets=[0, 1 << 50]),
    name_long=_rename('a' * (NAME + 1)),
    name_dots=_rename('a.' * (NAME // 2) + 'a'),
    name_escape=_rename(ESCAPE),
    name_empty=_rename(''),
    float8=_other(a=torch.zeros(4).to(torch.float8_e4m3fn)),
    float8_2=_other(a=torch.zeros(4).to(torch.float8_e5m2)),
    complex=_other(a=torch.zeros(4, dtype=torch.complex64)),
    uint16=_other(a=torch.zeros(4, dtype=torch.uint16)),
    half=_other(a=torch.zeros(4).half()),
    scalar=_other(a=torch.zeros(())),
    empty_tensor=_other(a=torch.zeros(0, 3)),
    no_tensor=_other(),
    nan=_other(a=torch.tensor([float('nan')])),
    pickle=lambda data: pickle.dumps(dict(a=[1, 2])),
    old_pickle=lambda data: pickle.dumps(dict(a=[1, 2]), protocol=0),
    archive=_checkpoint,
    text=lambda data: b'# a text\n' * 9)

# ------------------------------------------------------------------- JSON

#: Texts that are no JSON object of ours.
JSON_FILES: Dict[str, bytes] = dict(
    nothing=b'',
    cut=b'{"name": "m"',
    bytes=b'\xff\xfe\x00',
    list=b'[]',
    number=b'3',
    text=b'"text"',
    null=b'null',
    empty=b'{}',
    deep=b'[' * 9000 + b']' * 9000,
    over_deep=b'[' * (DEPTH + 1) + b']' * (DEPTH + 1),
    over_long=b'[' + b' ' * JSON_BYTES + b']',
    digits=b'{"a": 1' + b'0' * 400 + b'}',
    more_digits=b'{"a": 1' + b'0' * 5000 + b'}',
    inf=b'{"a": 1e999}',
    nan=b'{"a": NaN}',
    surrogate=b'{"name": "\\ud800"}',
    escape=json.dumps({ESCAPE: ESCAPE}).encode())


def odd_json(content: Any) -> Iterator[tuple]:
    """A JSON object with one value after the other exchanged.

    Yields:
        tuple[str, Any]: What was exchanged, and the object.
    """
    for path in _paths(content):
        for name, value in ODD_VALUES.items():
            changed = json.loads(json.dumps(content))
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            if inner[path[-1]] != value:
                inner[path[-1]] = value
                yield f'{".".join(map(str, path))}={name}', changed
        changed = json.loads(json.dumps(content))
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        yield f'{".".join(map(str, path))} left out', changed


def _paths(content: Any, depth: int = 3) -> Iterator[List]:
    items = content.items() if isinstance(content, dict) else enumerate(
        content[:1]) if isinstance(content, list) else ()
    for key, value in items if depth else ():
        yield [key]
        for path in _paths(value, depth - 1):
            yield [key, *path]


# ---------------------------------------------------- what is no regular file


def _sparse(path: Path) -> None:
    with path.open('wb') as file:
        file.truncate(1 << 40)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


#: Each makes something at a path where nothing is.
IN_PLACE: Dict[str, Callable[[Path], Any]] = dict(
    nothing=lambda path: None,
    folder=lambda path: path.mkdir(),
    full_folder=lambda path: (path / 'a').mkdir(parents=True),
    fifo=lambda path: os.mkfifo(path),
    loop=_loop,
    nowhere=lambda path: path.symlink_to('nowhere'),
    device=lambda path: path.symlink_to('/dev/zero'),
    terabyte=_sparse)


def put(path: Path, what: str) -> None:
    """Put something in the place of a file, or of a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    IN_PLACE[what](path)


def exchange(folder: Path, file: str, data: bytes, key: str) -> None:
    """Exchange a tensor file, and let the card beside it vouch for it."""
    (folder / file).write_bytes(data)
    card = json.loads((folder / 'card.json').read_text())
    inner = card
    *path, last = key.split('.')
    for part in path:
        inner = inner[part]
    inner[last] = sha256(data)
    (folder / 'card.json').write_text(json.dumps(card))


# ----------------------------------------------------------------- verdicts


class Verdict:
    """How a reader ended.

    Attributes:
        error (Exception): What it raised, if anything.
        problem (str): What is wrong with that; '' if it is one of our errors
            in a bounded, printable message, within time and memory.
    """

    def __init__(self) -> None:
        self.error, self.problem = None, ''


@contextmanager
def judged(size: int = 0) -> Iterator[Verdict]:
    """Run a reader, and judge how it ended.

    Args:
        size (int): Bytes of what it reads.
    """
    verdict = Verdict()
    before, start = _peak(reset=True), time.perf_counter()
    cpu = time.process_time()
    try:
        yield verdict
    except Exception as error:
        verdict.error = error
        said = str(error)
        if not is_user_error(error):
            verdict.problem = f'{type(error).__name__}: {said[:200]}'
        elif not said or len(said) > 2500:
            verdict.problem = f'a message of {len(said)} characters'
        elif isinstance(error, InputError) and any(
                not c.isprintable() and c != '\n' for c in said):
            verdict.problem = f'a message that is not printable: {said!r}'
    waited = time.perf_counter() - start
    seconds = time.process_time() - cpu
    megabytes = (_peak() - before - size) / 2**20
    if seconds > SLACK * SECONDS or waited > PATIENCE:
        verdict.problem += f' took {seconds:.1f} s, {waited:.1f} s of waiting'
    if megabytes > MEGABYTES:
        verdict.problem += f' took {megabytes:.0f} MB'


def _peak(reset: bool = False) -> int:
    """The most memory since the last reset, in bytes; 0 where not known."""
    try:
        if reset:
            Path('/proc/self/clear_refs').write_text('5')
        status = Path('/proc/self/status').read_text()
        return int(status.split('VmHWM:')[1].split()[0]) << 10
    except (OSError, IndexError):
        return 0
