# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The store keeps what was computed, whole, and of one source only."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import List

import pytest
import torch

from vim_mm.datasets import View
from vim_mm.features import shards as module
from vim_mm.features.shards import StoreError
from vim_mm.features.store import FeatureStore
from vim_mm.utils import drafts, files

SOURCE = dict(trunk='abc', pipeline='[1]', cv2='4.12.0', dtype='float32')
ROOT = Path(__file__).resolve().parents[2]


def views(start: int, stop: int) -> List[View]:
    return [View(f'{i // 2}.png', i % 2, 100 + i) for i in range(start, stop)]


def rows(some: List[View], *shape: int) -> torch.Tensor:
    shape = shape or (4, )
    return torch.stack(
        [torch.full(shape, float(view.pixels)) for view in some])


def filled(root: Path, stop: int = 10, *shape: int) -> FeatureStore:
    store = FeatureStore(root, SOURCE)
    with store.writer() as writer:
        writer.add(views(0, stop), rows(views(0, stop), *shape))
    return store


def shards(root: Path) -> List[Path]:
    return sorted(root.glob('*.safetensors'))


@pytest.mark.parametrize('shape', [(4, ), (3, 2, 5), ()])
def test_reads_what_was_written_in_any_order(tmp_path, shape) -> None:
    shape = shape or (1, )
    store = filled(tmp_path / 's', 10, *shape)
    again = FeatureStore(tmp_path / 's', SOURCE)
    asked = views(0, 10)[::-3] + views(2, 3) * 2
    for each in (store, again):
        assert len(each) == 10 and ('4.png', 1) in each
        assert ('5.png', 0) not in each
        assert torch.equal(each.read(asked), rows(asked, *shape))


def test_maps_with_channels_last(tmp_path) -> None:
    maps = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    store = FeatureStore(tmp_path, SOURCE)
    with store.writer() as writer:
        writer.add(views(0, 2), maps)
    assert torch.equal(store.read(views(0, 2)), maps)


def test_a_second_run_adds_only_what_is_missing(tmp_path) -> None:
    filled(tmp_path, 6)
    before = {path: path.stat().st_mtime_ns for path in shards(tmp_path)}
    reader = FeatureStore(tmp_path, SOURCE)
    store = FeatureStore(tmp_path, SOURCE)
    missing = [v for v in views(0, 10) if v[:2] not in store]
    assert missing == views(6, 10)
    with store.writer() as writer:
        writer.add(missing, rows(missing))
    assert len(shards(tmp_path)) == 2
    assert all(path.stat().st_mtime_ns == t for path, t in before.items())
    mixed = views(4, 8)[::-1]  # of both shards
    assert torch.equal(store.read(mixed), rows(mixed))
    with pytest.raises(StoreError, match='no features of view 1 of'):
        reader.read(views(7, 8))
    reader.refresh()
    assert torch.equal(reader.read(mixed), rows(mixed))


def test_is_memory_mapped(tmp_path) -> None:
    filled(tmp_path)
    store = FeatureStore(tmp_path, SOURCE)
    maps = Path('/proc/self/maps')
    if maps.exists():
        assert shards(tmp_path)[0].name in maps.read_text()
    assert len(store) == 10


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32'])
def test_keeps_its_number_format(tmp_path, dtype) -> None:
    store = FeatureStore(tmp_path, dict(SOURCE, dtype=dtype))
    with store.writer() as writer:
        writer.add(views(0, 3), rows(views(0, 3)).double() / 3)
    assert store.read(views(0, 3)).dtype == getattr(torch, dtype)


def test_shapes_of_one_batch(tmp_path) -> None:
    store = FeatureStore(tmp_path, SOURCE)
    with store.writer() as writer:
        writer.add(views(0, 3), rows(views(0, 3), 2, 2))
        writer.add(views(3, 6), rows(views(3, 6), 2, 3))
    assert len(shards(tmp_path)) == 2
    assert store.read(views(3, 6)).shape == (3, 2, 3)
    with pytest.raises(StoreError, match='different shapes'):
        store.read(views(2, 4))


@pytest.mark.parametrize('name', list(SOURCE))
def test_refuses_another_source_and_names_it(tmp_path, name) -> None:
    filled(tmp_path)
    other = dict(SOURCE, **{name: 'float16' if name == 'dtype' else 'xyz'})
    with pytest.raises(StoreError, match=f'another {name} \\(') as error:
        FeatureStore(tmp_path, other)
    assert str(error.value).count('another ') == 2  # and another folder
    with pytest.raises(StoreError, match='another torchvision'):
        FeatureStore(tmp_path, dict(SOURCE, torchvision='1'))


@pytest.mark.parametrize('wrong,words', [
    (View('1.png', 0, 103), 'but of other pixels'),
    (View('1.png', 7, 102), 'no features of view 7'),
    (View('x.png', 0, 102), "no features of view 0 of 'x.png'"),
])
def test_refuses_other_views(tmp_path, wrong, words) -> None:
    store = filled(tmp_path)
    with pytest.raises(StoreError, match=words):
        store.read([*views(0, 2), wrong])


def cut(data: bytes) -> bytes:
    return data[:-3]


def flip(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


def foreign(data: bytes) -> bytes:
    return b'no tensors'


@pytest.mark.parametrize('damage', [cut, flip, foreign, lambda data: b''])
def test_refuses_a_damaged_shard(tmp_path, damage) -> None:
    filled(tmp_path, 4)
    store = FeatureStore(tmp_path, SOURCE)
    with store.writer() as writer:
        writer.add(views(4, 6), rows(views(4, 6)))
    del store
    path = shards(tmp_path)[0]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoreError, match='damaged; delete it'):
        FeatureStore(tmp_path, SOURCE)
    path.unlink()
    assert 0 < len(FeatureStore(tmp_path, SOURCE)) < 6


def test_a_file_under_a_right_hash_that_is_no_shard(tmp_path) -> None:
    filled(tmp_path)
    data = b'other bytes'
    (tmp_path / f'{files.sha256(data)}.safetensors').write_bytes(data)
    with pytest.raises(StoreError, match='damaged'):
        FeatureStore(tmp_path, SOURCE)


@pytest.mark.parametrize('content', ['', '{"trunk": ', '[1]', '"x"'])
def test_refuses_a_damaged_card(tmp_path, content) -> None:
    filled(tmp_path)
    (tmp_path / 'card.json').write_text(content)
    with pytest.raises(StoreError, match='card.json.* is damaged'):
        FeatureStore(tmp_path, SOURCE)


def test_refuses_a_folder_of_something_else(tmp_path) -> None:
    (tmp_path / 'mine.txt').write_text('x')
    with pytest.raises(StoreError, match='is no store of features'):
        FeatureStore(tmp_path, SOURCE)
    assert os.listdir(tmp_path) == ['mine.txt']


def test_nothing_appears_before_something_is_added(tmp_path) -> None:
    root = tmp_path / 'a' / 'store'
    store = FeatureStore(root, SOURCE)
    assert len(store) == 0 and not root.exists()


@pytest.mark.parametrize('full_at', ['card', 'shard', 'second shard'])
def test_a_full_disk(tmp_path, monkeypatch, full_at) -> None:
    calls = iter(range(9))
    last = dict(card=0, shard=1)
    real = os.fsync

    def fsync(handle):
        if next(calls) >= last.get(full_at, 2):
            raise OSError(errno.ENOSPC, 'No space left on device')
        return real(handle)

    monkeypatch.setattr(files.os, 'fsync', fsync)
    monkeypatch.setattr(drafts, 'sync_folder', lambda folder: None)
    store = FeatureStore(tmp_path / 's', SOURCE)
    with pytest.raises(StoreError, match='No space left.*kept: make room'):
        with store.writer() as writer:
            writer.add(views(0, 4), rows(views(0, 4)))
            writer.flush()
            writer.add(views(4, 8), rows(views(4, 8)))
    monkeypatch.undo()
    left = [p.name for p in (tmp_path / 's').iterdir()]
    assert not any('draft' in name for name in left)
    kept = FeatureStore(tmp_path / 's', SOURCE)
    assert len(kept) == (4 if full_at == 'second shard' else 0)
    with kept.writer() as writer:
        writer.add(views(4, 8), rows(views(4, 8)))
    assert torch.equal(kept.read(views(4, 8)), rows(views(4, 8)))


def test_an_interrupted_pass_keeps_what_it_had(tmp_path) -> None:
    store = FeatureStore(tmp_path, SOURCE)
    with pytest.raises(KeyboardInterrupt), store.writer() as writer:
        writer.add(views(0, 4), rows(views(0, 4)))
        raise KeyboardInterrupt
    assert len(FeatureStore(tmp_path, SOURCE)) == 4


KILLED = """
import os, sys, signal
import torch
import vim_mm
from vim_mm.datasets import View
from vim_mm.features import store as module
from vim_mm.utils import files
store = module.FeatureStore(sys.argv[1], {source})
with store.writer() as writer:
    writer.add([View('x', 0, 1)], torch.zeros(1, 4))
    writer.flush()
    writer.add([View('y', 0, 1)], torch.zeros(1, 4))
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)
    files.os.replace = die
"""


def test_a_killed_writer_leaves_no_half_entry(tmp_path) -> None:
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]))
    code = subprocess.run(
        [sys.executable, '-c', KILLED.format(source=SOURCE), str(tmp_path)],
        env=env).returncode
    assert code == -signal.SIGKILL
    assert (tmp_path / '.writer-0.draft').exists()
    store = FeatureStore(tmp_path, SOURCE)
    assert len(store) == 1 and ('x', 0) in store
    with store.writer() as writer:  # takes the place of the dead one
        writer.add(views(0, 2), rows(views(0, 2)))
    assert not (tmp_path / '.writer-0.draft').exists()
    assert len(store) == 3


def write(root: Path, start: int, barrier) -> None:
    store = FeatureStore(root, SOURCE)
    barrier.wait()
    with store.writer() as writer:
        for first in range(start, start + 20, 5):
            some = views(first, first + 5)
            writer.add(some, rows(some))
            writer.flush()


def test_processes_write_and_read_together(tmp_path) -> None:
    spawn = multiprocessing.get_context('fork')
    barrier = spawn.Barrier(2)
    # the second half of the one is the first half of the other
    both = [
        spawn.Process(target=write, args=(tmp_path, start, barrier))
        for start in (0, 10)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    store = FeatureStore(tmp_path, SOURCE)
    assert len(store) == 30
    assert torch.equal(store.read(views(0, 30)), rows(views(0, 30)))
    assert json.loads((tmp_path / 'card.json').read_text()) == SOURCE


def test_two_writers_of_one_process(tmp_path) -> None:
    one, two = FeatureStore(tmp_path, SOURCE), FeatureStore(tmp_path, SOURCE)
    with one.writer() as first, two.writer() as second:
        first.add(views(0, 2), rows(views(0, 2)))
        second.add(views(2, 4), rows(views(2, 4)))
    one.refresh()
    assert len(one) == 4


def test_a_shard_is_written_once_it_is_large(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, 'SHARD_BYTES', 64)
    store = FeatureStore(tmp_path, SOURCE)
    with store.writer() as writer:
        writer.add(views(0, 3), rows(views(0, 3)))
        assert not shards(tmp_path)
        writer.add(views(3, 6), rows(views(3, 6)))
        assert len(shards(tmp_path)) == 1
