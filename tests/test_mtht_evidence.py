# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""docs/evidence: rows are whole, and its text says what they say."""

import json
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
DOCS = REPO / 'docs/evidence'
sys.path.insert(0, str(REPO / 'benchmarks'))

import evidence_rows  # noqa: E402,I001 isort:skip
import mtht_summary  # noqa: E402,I001 isort:skip
import evidence_tables  # noqa: E402,I001 isort:skip

ROWS = json.loads((DOCS / 'mtht.json').read_text())
VERDICTS = json.loads((DOCS / 'verdicts.json').read_text())


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row['method'])
def test_rows_are_whole(row: dict) -> None:
    assert set(evidence_rows.FIELDS) <= set(row)
    assert row['verdict'] == VERDICTS[row['claim']]['verdict']
    assert row['verdict'] in ('holds', 'does not hold',
                              'not testable at this scale',
                              'not settled, too few seeds')
    assert row['seeds'] >= 1
    assert (row['spread'] is None) == (row['seeds'] == 1)
    assert row['n_train'] > 0 and row['n_test'] > 0
    assert len(row['commit']) >= 7


def test_rows_are_those_of_the_runs() -> None:
    runs = mtht_summary.read(DOCS / 'runs.jsonl')
    assert mtht_summary.summarise(runs, VERDICTS) == ROWS


def test_every_claim_has_rows() -> None:
    assert set(VERDICTS) == {row['claim'] for row in ROWS}


def test_readme_shows_the_rows() -> None:
    text = (DOCS / 'README.md').read_text()
    assert evidence_tables.tables(ROWS, VERDICTS) in text


def test_old_tasks_stay_identical() -> None:
    """Of the rows that say so, nothing has changed in any seed."""
    same = [row for row in ROWS if row.get('identical')]
    assert same
    for row in same:
        assert row['baseline']['difference'] == 0
        assert not row['baseline']['difference_spread']


def test_figures_compare_within_seeds() -> None:
    row = mtht_summary.figure('i', 'cls', 'ours', {0: 50., 1: 60.}, 'theirs',
                              {0: 40., 1: 52., 2: 99.})
    assert (row['mean'], row['seeds'], row['n_test']) == (55., 2, 341)
    assert row['spread'] == pytest.approx(7.0711)
    assert row['baseline'] == dict(
        method='theirs', mean=46., difference=9., difference_spread=1.4142)
