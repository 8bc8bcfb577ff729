# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Wherever a run is killed, its last complete checkpoint is there."""

import os
from pathlib import Path
from typing import Any, List

import pytest
import torch
from _states import best, judged, rises, states_of, step_of
from mmengine.runner import FlexibleRunner

from _runs import learned, run, unlike
from vim_mm.utils.files import sweep, write_atomic

SETTINGS = dict(
    best=dict(steps=3, **best(max_keep_ckpts=1)),
    epochs=dict(by_epoch=True, steps=3, **best(max_keep_ckpts=2)))


@pytest.mark.parametrize('case', SETTINGS)
def test_a_kill_at_any_file_operation(case: str, tmp_path: Path,
                                      monkeypatch: Any) -> None:
    """`make reliability` does so with many more runs."""
    monkeypatch.setattr('mmengine.evaluator.Evaluator.evaluate', rises)
    folder, settings = tmp_path / 'run', SETTINGS[case]
    one = run(folder, **settings)
    states = states_of(folder, one.train)
    found = list(judged(states))
    assert not any(problem for _, _, problem in found)
    assert len(states) > 15 and len({step for _, step, _ in found}) == 4
    state = states[len(states) * 2 // 3]
    again = run(state, resume=True, **settings)
    again.train()
    assert not unlike(learned(one), learned(again))
    assert left(state) == left(folder)
    assert not list(state.glob('.*.draft'))


def left(folder: Path) -> List[str]:
    """Checkpoints at the end of a run, but for the best."""
    return sorted(path.name for path in folder.glob('*.pth')
                  if not path.name.startswith('best'))


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
    run(tmp_path, **SETTINGS['best']).train()
    saved = {p.name: step_of(p) for p in tmp_path.glob('iter*.pth')}
    assert saved == {'iter_3.pth': 3}
    assert [p.name for p in tmp_path.glob('best*')] == ['best_acc_iter_3.pth']


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
