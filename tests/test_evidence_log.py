# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Files of finished runs: none is lost, and a damaged line is named."""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Callable

import pytest
from _states import states_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'benchmarks'))
import evidence_log  # noqa: E402,I001 isort:skip
import evidence_rows  # noqa: E402,I001 isort:skip
import mtht_summary  # noqa: E402,I001 isort:skip
import no_harm_summary  # noqa: E402,I001 isort:skip
import students_summary  # noqa: E402,I001 isort:skip
import zoo_curve_summary  # noqa: E402,I001 isort:skip

SUMMARIES = [mtht_summary, no_harm_summary, students_summary,
             zoo_curve_summary]


def row(run: str, seed: int = 0) -> dict:
    return dict(seed=seed, run=run, commit='c', top1=.5)


def lines(path: Path, *runs: str) -> bytes:
    for run in runs:
        evidence_rows.add(path, row(run))
    return path.read_bytes()


DAMAGE = dict(
    cut=lambda good: good[:-9],
    cut_within=lambda good: good.replace(b'"commit": "c", ', b'', 1)[:40]
    + good[40:],
    zeros=lambda good: good + b'\0' * 50 + b'\n',
    no_text=lambda good: good + b'\xff\xfe{}\n',
    blank=lambda good: good + b'\n',
    number=lambda good: good + b'3\n',
    another=lambda good: good + b'{"a": 1}\n',
    seed_a_text=lambda good: good + b'{"seed": "0", "run": "x"}\n',
    seed_true=lambda good: good + b'{"seed": true, "run": "x"}\n',
    run_a_list=lambda good: good + b'{"seed": 0, "run": ["x"]}\n',
    deep=lambda good: good + b'[' * 99999 + b'\n',
    joined=lambda good: good.replace(b'\n', b'', 1))


@pytest.mark.parametrize('what', DAMAGE)
def test_a_damaged_line_is_named_and_none_is_lost(
        what: str, tmp_path: Path) -> None:
    log = evidence_log.RunLog(tmp_path)
    bad = DAMAGE[what](lines(log.path, 'a', 'b'))
    log.path.write_bytes(bad)
    done = []
    with pytest.raises(ValueError, match=r'Line \d of .*runs.jsonl is damag'):
        log.run(0, [('c', lambda: done.append(1) or {})])
    assert not done and log.path.read_bytes() == bad
    # a run that was under way keeps its result, in a line of its own
    evidence_rows.add(log.path, row('d'))
    kept = log.path.read_bytes()
    assert kept.startswith(bad) and json.loads(kept.splitlines()[-1]) == row(
        'd')


def test_killed_at_every_change(tmp_path: Path) -> None:
    folder = tmp_path / 'work'
    log = evidence_log.RunLog(folder)
    lines(log.path, 'a', 'b')

    def run() -> None:
        log.run(0, [('c', dict), ('d', dict)])

    known: Any = {'a', 'b'}
    states = states_of(folder, run)
    assert len(states) > 4
    for state in states:
        rows = evidence_log.RunLog(state).rows(0)
        assert rows.keys() >= known
        known = rows.keys()
    assert set(log.rows(0)) == {'a', 'b', 'c', 'd'}


def add_some(path: Path, seed: int) -> None:
    for index in range(20):
        evidence_rows.add(path, row(str(index), seed))


def test_processes_of_other_seeds(tmp_path: Path) -> None:
    path = tmp_path / 'runs.jsonl'
    with ProcessPoolExecutor(3) as pool:
        for each in [pool.submit(add_some, path, s) for s in range(3)]:
            each.result()
    runs = evidence_rows.read(path)
    assert {seed: len(rows) for seed, rows in runs.items()} == dict.fromkeys(
        range(3), 20)


@pytest.mark.parametrize('module', SUMMARIES, ids=lambda m: m.__name__)
@pytest.mark.parametrize('make', [
    lambda path: None, lambda path: path.write_bytes(b'{"seed": 0,\n')])
def test_summaries_refuse_what_is_no_file_of_runs(
        module: Any, make: Callable, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    docs, new = tmp_path / 'docs', tmp_path / 'new.jsonl'
    docs.mkdir()
    make(new)
    monkeypatch.setattr(module, 'DOCS', docs)
    monkeypatch.setattr(sys, 'argv', ['summary', str(new)])
    with pytest.raises((FileNotFoundError, ValueError), match='new.jsonl'):
        module.main()
    assert not list(docs.iterdir())
