# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Steps of the demo of students: reused until something they read changes."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config

from _tiny import first_of
from vim_mm.demo import common, student, student_runs, student_training


@pytest.fixture
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ('tree_crowns', 'solar_cells', 'digits_on_photographs'):
        (tmp_path / 'data' / name).mkdir(parents=True)
        (tmp_path / 'data' / name / 'manifest.json').write_text('{}')
    monkeypatch.setattr(common, 'default_out', lambda n: tmp_path / 'data' / n)
    return tmp_path / 'out'


def finish(name: str, work_dir: Path, seed: int = 0) -> None:
    path = work_dir / name / 'result.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    key = student.fingerprint(name, work_dir, seed)
    path.write_text(json.dumps(dict(fingerprint=key, format=common.FORMAT)))


@pytest.mark.parametrize('name', list(student.STEPS))
def test_a_finished_step_is_reused(name: str, work_dir: Path) -> None:
    assert not student.finished(name, work_dir)
    finish(name, work_dir)
    assert student.finished(name, work_dir)
    assert not student.finished(name, work_dir, seed=1)


def test_a_step_depends_on_those_it_reads(work_dir: Path) -> None:
    for name in student.STEPS:
        finish(name, work_dir)
    finish('release', work_dir, seed=1)  # another release
    stale = [n for n in student.STEPS if not student.finished(n, work_dir)]
    assert stale == ['release', 'teacher', 'ota']


def test_every_step_runs_something() -> None:
    assert list(student_runs.RUNS) == list(student.STEPS)
    for step in student.STEPS.values():
        assert set(step.after) <= set(student.STEPS)
        for name in step.configs:
            assert (common.CONFIGS / f'{name}.py').is_file()


@pytest.mark.parametrize(
    'name', first_of(
        sorted({c for s in student.STEPS.values() for c in s.configs}), 2))
def test_configs_read_what_the_demo_writes(name: str, work_dir: Path) -> None:
    """By themselves they read the default folder, in the demo its own."""
    cfg = student_training.config(name, work_dir, 0)
    assert 'work_dirs/demo_student' not in cfg.pretty_text
    text = Config.fromfile(common.CONFIGS / f'{name}.py').pretty_text
    assert str(work_dir) not in text
