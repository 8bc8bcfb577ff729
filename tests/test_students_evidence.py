# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""docs/evidence of students: rows are whole, its text says what they say."""

import json
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
DOCS = REPO / 'docs/evidence'
sys.path.insert(0, str(REPO / 'benchmarks'))

import evidence_log  # noqa: E402,I001 isort:skip
import evidence_rows  # noqa: E402,I001 isort:skip
import evidence_tables  # noqa: E402,I001 isort:skip
import students_summary  # noqa: E402,I001 isort:skip

VERDICTS = json.loads((DOCS / 'students_verdicts.json').read_text())
ROWS = {
    system: json.loads((DOCS / f'{system}.json').read_text())
    for system in ('ota', 'tdmr')
}
ALL = [row for rows in ROWS.values() for row in rows]


@pytest.mark.parametrize('row', ALL, ids=lambda row: row['method'])
def test_rows_are_whole(row: dict) -> None:
    assert set(evidence_rows.FIELDS) <= set(row)
    assert row['verdict'] == VERDICTS[row['claim']]['verdict']
    assert row['verdict'] in ('holds', 'does not hold',
                              'not testable at this scale',
                              'not settled, too few seeds')
    assert row['seeds'] >= 1
    assert (row['spread'] is None) == (row['seeds'] == 1)
    assert row['n_train'] > 0 and row['n_test'] > 0


def test_rows_are_those_of_the_runs() -> None:
    runs = evidence_rows.read(DOCS / 'students_runs.jsonl')
    rows = students_summary.summarise(runs, VERDICTS)
    for system, own in ROWS.items():
        assert own == [
            row for row in rows
            if students_summary.SYSTEMS[row['claim']] == system
        ]


def test_every_claim_has_rows() -> None:
    assert set(VERDICTS) == {row['claim'] for row in ALL}
    assert set(VERDICTS) == set(students_summary.SYSTEMS)


def test_the_page_shows_the_rows() -> None:
    runs = evidence_rows.read(DOCS / 'students_runs.jsonl')
    rows = students_summary.summarise(runs, VERDICTS)
    text = (DOCS / 'students.md').read_text()
    assert evidence_tables.tables(rows, VERDICTS) in text


def test_foundation_models_are_never_back_propagated() -> None:
    rows = [
        row for row in ROWS['tdmr']
        if row['metric'] == 'images back through them'
    ]
    assert rows
    assert not any(row['mean'] for row in rows)


def test_finished_runs_are_kept_and_not_repeated(tmp_path: Path) -> None:
    done = []

    def plan(*names: str) -> list:
        return [(name, lambda name=name: done.append(name) or dict(top1=1.))
                for name in names]

    log = evidence_log.RunLog(tmp_path / 'new')
    log.run(0, plan('a', 'b/c'))
    log.run(0, plan('a', 'b/c', 'd'))
    log.run(1, plan('a'))
    assert done == ['a', 'b/c', 'd', 'a']
    assert set(log.rows(0)) == {'a', 'b/c', 'd'} and set(log.rows(1)) == {'a'}
    assert log.rows(0)['a']['top1'] == 1.

    def broken() -> dict:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        log.run(2, [*plan('a'), ('x', broken), *plan('b')])
    assert set(log.rows(2)) == {'a'}
    some = evidence_log.RunLog(tmp_path / 'new', ['b/', 'e'])
    done.clear()
    some.run(3, plan('a', 'b/c', 'b/d', 'e', 'e/f'))
    assert done == ['b/c', 'b/d', 'e']
