# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Every changed bit of a file with a checksum is noticed."""

import json
from pathlib import Path
from typing import Any, Callable

import mmengine.runner
import pytest
import torch
from mmengine.runner import CheckpointLoader, save_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vim_mm.utils import checksum
from vim_mm.utils.checkpoint import CheckpointError
from vim_mm.utils.checksum import BLANK, NAME, is_intact, save_tensors

STATE = dict(a=torch.arange(6.).view(2, 3), b=torch.tensor([1, 2]))


def as_pth(path: Path) -> Path:
    path = path.with_suffix('.pth')
    save_checkpoint(dict(state_dict=STATE, meta=dict(iter=3)), str(path))
    return path


def as_safetensors(path: Path) -> Path:
    """As a converted trunk and a moe file have it, in turn."""
    path = path.with_suffix('.safetensors')
    save_tensors(STATE, dict(x=json.dumps({'y': '0', NAME: BLANK})), path)
    return path


def as_metadata(path: Path) -> Path:
    path = path.with_suffix('.safetensors')
    save_tensors(STATE, dict(source_sha256='1' * 64, **{NAME: BLANK}), path)
    return path


WRITERS = [as_pth, as_safetensors, as_metadata]


@pytest.mark.parametrize('write', WRITERS)
def test_anyone_reads_the_file(write: Callable, tmp_path: Path) -> None:
    path = write(tmp_path / 'x')
    assert is_intact(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    loaded = CheckpointLoader.load_checkpoint(str(path))['state_dict']
    if path.suffix == '.pth':
        plain = torch.load(path, weights_only=True, mmap=True)['state_dict']
    else:
        plain = load_file(path)
    for state in (loaded, plain):
        assert state.keys() == STATE.keys()
        assert all(torch.equal(state[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize('write', WRITERS)
def test_a_flipped_bit_is_named(write: Callable, tmp_path: Path) -> None:
    path = write(tmp_path / 'x')
    blob = path.read_bytes()
    harmless = 0
    ends = 120 if path.suffix == '.pth' else len(blob)
    for place in (*range(0, len(blob) - ends, 7),
                  *range(len(blob) - ends, len(blob))):
        changed = bytearray(blob)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        if is_intact(path) is False:
            continue
        try:
            loaded = CheckpointLoader.load_checkpoint(str(path))['state_dict']
        except CheckpointError:
            continue
        # the name of the checksum itself has changed, and nothing else
        assert path.suffix == '.safetensors'
        assert all(torch.equal(loaded[key], STATE[key]) for key in STATE)
        harmless += 1
    assert harmless <= len(f'"{NAME}":"') + 4
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match=f'{path.name} is '):
        CheckpointLoader.load_checkpoint(str(path))


@pytest.mark.parametrize('size', [0, 1, 2, 99, 1 << 20, (1 << 20) + 1])
def test_files_of_any_size(size: int, tmp_path: Path,
                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksum, '_CHUNK', 1000)
    state = dict(x=torch.zeros(size, dtype=torch.uint8))
    path = tmp_path / 'x.pth'
    save_checkpoint(state, str(path))
    assert is_intact(path) and torch.load(path)['x'].numel() == size
    save_tensors(state, {NAME: BLANK}, path)
    assert is_intact(path)
    blob = path.read_bytes()
    path.write_bytes(blob + b'\0')
    assert is_intact(path) is False


def by_torch(path: Path) -> None:
    torch.save(STATE, path)


def by_old_torch(path: Path) -> None:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)


def by_safetensors(path: Path) -> None:
    save_file(STATE, path, dict(sha256='1' * 64))


@pytest.mark.parametrize('write', [
    by_torch, by_old_torch, by_safetensors,
    lambda path: path.write_bytes(b''), lambda path: path.write_bytes(b'PK'),
    lambda path: path.write_bytes(b'PK\x03\x04'),
    lambda path: path.write_bytes(b'\xff' * 300)
])
def test_files_of_others_have_none(write: Callable, tmp_path: Path) -> None:
    path = tmp_path / 'x'
    write(path)
    assert is_intact(path) is None


def test_all_ways_to_mmengine_write_alike(tmp_path: Path) -> None:
    from mmengine.runner import checkpoint, runner
    ways = [mmengine.runner, checkpoint, runner]
    for index, module in enumerate(ways):
        path: Any = tmp_path / 'deep' / f'{index}.pth'
        module.save_checkpoint(STATE, str(path))
        assert is_intact(path)


def test_the_checksum_is_of_the_file(tmp_path: Path) -> None:
    """What others may compute from the documentation."""
    from hashlib import sha256
    blob = as_pth(tmp_path / 'x').read_bytes()
    assert sha256(blob[:-78]).hexdigest().encode() == blob[-64:]
    path = as_safetensors(tmp_path / 'x')
    with safe_open(path, 'pt') as file:
        said = json.loads(file.metadata()['x'])[NAME]
    blank = path.read_bytes().replace(said.encode(), BLANK.encode())
    assert sha256(blank).hexdigest() == said
