# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""All that writes is killed, or fails: the old or the new, whole.

``make reliability`` tries every step; here are some of each writer.
"""

from pathlib import Path
from typing import Any

import pytest
from _writers import WRITERS

SLOW = ('onnx', 'student', 'experts', 'generated_seg', 'generated_cls', 'peft',
        'copies', 'pulled', 'new_task', 'split_task', 'vim_release')


@pytest.fixture(scope='module')
def trial() -> Any:
    """The rows of the campaign."""
    with pytest.MonkeyPatch.context() as monkey:
        monkey.syspath_prepend(
            str(Path(__file__).resolve().parents[1] / 'benchmarks'))
        import reliability_writers
        yield reliability_writers


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))
    for name in WRITERS])
def test_the_old_or_the_new_is_there(name: str, tmp_path: Path, trial: Any,
                                     monkeypatch: Any) -> None:
    monkeypatch.setattr(trial, 'WRITERS', {name: WRITERS[name]})
    for interrupt in (trial.kill, trial.fail):
        tally, root = trial.Tally(), tmp_path / interrupt.__name__
        root.mkdir()
        trial.interrupted(interrupt, tally, root, .12, 3)
        assert not tally.lost and not tally.failed
        assert tally.tried > 5


def test_what_is_lost_is_found(tmp_path: Path, trial: Any,
                               monkeypatch: Any) -> None:
    """A writer that writes in place is caught."""

    def careless(root: Path) -> Any:
        return trial.Writer(
            lambda folder, version: (folder / 'x').write_text(
                f'version {version}'),
            lambda folder: int((folder / 'x').read_text().split()[1]))

    monkeypatch.setattr(trial, 'WRITERS', dict(careless=careless))
    tally = trial.Tally()
    trial.interrupted(trial.fail, tally, tmp_path, 1., 0)
    assert tally.lost
