# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Wherever a run is killed, its last complete checkpoint is there."""

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, List, Optional

import pytest
import torch
from mmengine.runner import FlexibleRunner

from _runs import learned, run, unlike, validation
from vim_mm.engine.resume import choose_checkpoint
from vim_mm.engine.stopping import Stop
from vim_mm.utils.checksum import is_intact
from vim_mm.utils.files import sweep, write_atomic


class States:
    """What a folder holds before each change to a file in it.

    A process that is killed leaves one of these states. Beside them there is
    one in which a file is empty, for each file that is opened to be written.
    """

    #: What Python calls before it changes a file.
    EVENTS = ('open', 'os.rename', 'os.remove', 'os.rmdir', 'os.truncate')
    watching: Optional['States'] = None

    def __init__(self, folder: Path, copies: Path) -> None:
        self.folder = folder
        self.copies = copies
        self.count = 0
        self.busy = False

    def __call__(self, event: str, args: tuple) -> None:
        if self.busy or event not in self.EVENTS:
            return
        path = Path(os.fsdecode(args[0])) if isinstance(
            args[0], (str, bytes, os.PathLike)) else None
        if path is None or self.folder not in path.parents:
            return
        is_opened = event == 'open'
        if is_opened and not args[2] & (os.O_WRONLY | os.O_RDWR):
            return
        self.busy = True
        copy = self._copy()
        if is_opened and args[2] & os.O_TRUNC:
            copy = self._copy()
            (copy / path.relative_to(self.folder)).write_bytes(b'')
        self.busy = False

    def _copy(self) -> Path:
        copy = self.copies / f'{self.count:04}'
        self.count += 1
        copy.mkdir(parents=True)
        for path in self.folder.iterdir():
            if path.is_file():
                shutil.copy2(path, copy)
        return copy


def _on_event(event: str, args: tuple) -> None:
    if States.watching is not None:
        States.watching(event, args)


@pytest.fixture(scope='module', autouse=True)
def hook() -> None:
    sys.addaudithook(_on_event)  # it can never be taken away


def states_of(folder: Path, work: Callable[[], Any]) -> List[Path]:
    States.watching = States(folder, folder.parent / 'states')
    try:
        work()
    finally:
        States.watching = None
    return sorted((folder.parent / 'states').iterdir())


def step_of(path: Path) -> int:
    return torch.load(path, weights_only=False)['meta']['iter']


def complete(folder: Path, start: str) -> List[Path]:
    return [path for path in folder.glob(f'{start}*.pth') if is_intact(path)]


SETTINGS = dict(
    best=dict(
        checkpoint=dict(max_keep_ckpts=1, save_best='auto', rule='greater'),
        **validation()),
    epochs=dict(
        by_epoch=True,
        steps=3,
        checkpoint=dict(max_keep_ckpts=2, save_best='auto', rule='greater'),
        **validation()))


def rises(evaluator: Any, size: int) -> dict:
    """An accuracy that is better each time."""
    return dict(acc=float(Stop.current.runner.iter))


@pytest.mark.parametrize('case', SETTINGS)
def test_a_kill_at_any_file_operation(case: str, tmp_path: Path,
                                      monkeypatch: Any) -> None:
    monkeypatch.setattr('mmengine.evaluator.Evaluator.evaluate', rises)
    folder = tmp_path / 'run'
    settings = dict(dict(steps=4), **SETTINGS[case])
    one = run(folder, **settings)
    states = states_of(folder, one.train)
    assert len(states) > 15
    begun, had_best = 0, False
    for state in states:
        files = [p for p in complete(state, '') if 'best' not in p.name]
        newest = max(map(step_of, files), default=0)
        best = complete(state, 'best')
        assert newest >= begun and (best or not had_best), state
        begun, had_best = newest, had_best or bool(best)
        if not newest:
            continue
        again = SimpleNamespace(
            work_dir=str(state),
            hooks=[],
            _has_loaded=False,
            _resume=True,
            _load_from=None)
        choose_checkpoint(again)
        assert step_of(Path(again._load_from)) == newest, state
    assert begun and had_best
    for state in states[len(states) // 2::len(states) // 3]:
        again = run(state, resume=True, **settings)
        again.train()
        assert not unlike(learned(one), learned(again)), state
        left = sorted(p.name for p in state.glob('*.pth')
                      if 'best' not in p.name)
        assert left == sorted(p.name for p in folder.glob('*.pth')
                              if 'best' not in p.name)
        assert not list(state.glob('.*.draft'))


def test_the_states_of_mmengine_lose_a_checkpoint(tmp_path: Path) -> None:
    """So the test above can fail: as mmengine writes, it does."""
    folder = tmp_path / 'run'
    folder.mkdir()

    def work() -> None:
        for step in (1, 2):
            for path in folder.glob('*.pth'):
                path.unlink()
            with open(folder / f'iter_{step}.pth', 'wb') as file:
                torch.save(dict(meta=dict(iter=step)), file)

    states = states_of(folder, work)
    sizes = [[p.stat().st_size for p in s.glob('*.pth')] for s in states]
    assert [] in sizes[1:] and [0] in sizes


@pytest.mark.parametrize('flexible', [False, True])
def test_the_counters_of_a_file(flexible: bool, tmp_path: Path,
                                monkeypatch: Any) -> None:
    """A FlexibleRunner of mmengine notes one step too many with the best."""
    if flexible:
        monkeypatch.setattr('_tiny.Runner', FlexibleRunner)
    monkeypatch.setattr('mmengine.evaluator.Evaluator.evaluate', rises)
    run(tmp_path, steps=4, **SETTINGS['best']).train()
    saved = {p.name: step_of(p) for p in tmp_path.glob('iter*.pth')}
    assert saved == {'iter_4.pth': 4}
    assert [p.name for p in tmp_path.glob('best*')] == ['best_acc_iter_4.pth']


def test_the_hook_still_removes_old_ones(tmp_path: Path) -> None:
    run(tmp_path, steps=5, checkpoint=dict(max_keep_ckpts=2)).train()
    assert sorted(p.name for p in tmp_path.glob('*.pth')) == [
        'iter_4.pth', 'iter_5.pth']
    assert (tmp_path / 'last_checkpoint').read_text().endswith('iter_5.pth')


def test_drafts_of_others_stay(tmp_path: Path) -> None:
    names = ['.a.pth.12.draft', '.a.draft', 'a.12.draft', '.a.pth.x.draft']
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / '.folder.1.draft').mkdir()
    sweep(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*names[1:], '.folder.1.draft'}


@pytest.mark.parametrize('content', [b'bytes', 'text', lambda f: f.write(b'')])
def test_a_failed_write_leaves_the_old(content: Any, tmp_path: Path,
                                       monkeypatch: Any) -> None:
    path = tmp_path / 'x'
    write_atomic(path, 'old')

    def fail(*args: Any) -> None:
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', fail)
        with pytest.raises(OSError):
            write_atomic(path, content)
    assert path.read_text() == 'old' and len(os.listdir(tmp_path)) == 1
    write_atomic(path, content)
    assert path.read_text() != 'old'
