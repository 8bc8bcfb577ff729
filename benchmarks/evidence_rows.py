# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Runs of several seeds as the rows of docs/evidence."""

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Dict, Mapping, NamedTuple, Optional, Sequence

from vim_mm.utils.drafts import named
from vim_mm.utils.files import write_atomic
from vim_mm.utils.locks import Lock
from vim_mm.utils.messages import short

#: seed: run: what it gave
Runs = Dict[int, Dict[str, Dict[str, Any]]]
FIELDS = ('claim', 'data', 'metric', 'method', 'mean', 'spread', 'seeds',
          'n_train', 'n_test', 'baseline', 'verdict', 'command', 'commit')


class Data(NamedTuple):
    """What is learned from and judged on.

    Attributes:
        name (str): Of the data set.
        metric (str): What is measured.
        train (int): Images to learn from.
        test (int): Images to judge on.
    """
    name: str
    metric: str
    train: int
    test: int


def read(*paths: Path) -> Runs:
    """Runs by name, by seed; a later file's take the place of earlier ones.

    Args:
        *paths (Path): Files of a line for each run.

    Raises:
        ValueError: If a line is none of a run.
    """
    runs: Runs = {}
    for path in paths:
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            row = _row(line)
            if row is None:
                raise ValueError(f'Line {number} of {path} is damaged, '
                                 f'{short(line)}; take it out, and its run '
                                 'is done again.')
            runs.setdefault(row['seed'], {})[row['run']] = row
    return dict(sorted(runs.items()))


def _row(line: bytes) -> Optional[Dict[str, Any]]:
    """The run of a line; None if it is none."""
    try:
        row = json.loads(line)
    except (RecursionError, ValueError):
        return None
    types = dict(seed=int, run=str)
    fits = isinstance(row, dict) and all(
        type(row.get(key)) is kind for key, kind in types.items())
    return row if fits else None


def write(path: Path, runs: Runs) -> None:
    """Write runs as :func:`read` reads them."""
    write_atomic(
        path, ''.join(
            json.dumps(row) + '\n' for rows in runs.values()
            for row in rows.values()))


def add(path: Path, row: Mapping[str, Any]) -> None:
    """Add a run to those of a file, there or not yet.

    Processes that run other seeds may add to it as well, and what is damaged
    stays as it is.
    """
    with named(path), Lock(f'{path}.lock'):
        before = path.read_bytes() if path.exists() else b''
        if before and not before.endswith(b'\n'):
            before += b'\n'  # the end of a line that was cut off
        write_atomic(path, before + f'{json.dumps(row)}\n'.encode())


def figure(claim: str,
           data: Sequence[Data],
           method: str,
           values: Mapping[int, float],
           baseline: str = '',
           against: Optional[Mapping[int, float]] = None,
           metric: str = '',
           **costs: Any) -> Dict[str, Any]:
    """One row, of the seeds that there are.

    Args:
        claim (str): Which claim it is about.
        data (Sequence[Data]): Of the tasks that it is about.
        method (str): What was done.
        values (Mapping[int, float]): By seed.
        baseline (str): What it is compared to.
        against (Mapping[int, float], optional): Values of that, by seed.
        metric (str): If it is not the task's own.
        **costs: Parameters and multiply-adds.
    """
    both = sorted(set(values) & set(against or {}))
    compared = None
    if both:
        gains = [values[s] - against[s] for s in both]
        compared = dict(
            method=baseline,
            mean=rounded(mean(against[s] for s in both)),
            difference=rounded(mean(gains)),
            difference_spread=spread(gains))
    return dict(
        claim=claim,
        data=', '.join(each.name for each in data),
        metric=metric or data[0].metric,
        method=method,
        mean=rounded(mean(values.values())),
        spread=spread(list(values.values())),
        seeds=len(values),
        n_train=sum(each.train for each in data),
        n_test=sum(each.test for each in data),
        baseline=compared,
        **costs)


def rounded(value: float) -> float:
    """To four digits after the point."""
    return round(value, 4)


def spread(values: Sequence[float]) -> Optional[float]:
    """The deviation over seeds; None of one alone."""
    return rounded(stdev(values)) if len(values) > 1 else None


def column(runs: Runs, run: str, *path: Any) -> Dict[int, Any]:
    """A value of a run, by seed; of the seeds that have it."""
    found = {}
    for seed, rows in runs.items():
        value = rows.get(run)
        for key in path:
            value = None if value is None else value[key]
        if value is not None:
            found[seed] = value
    return found


def commits(runs: Runs) -> str:
    """Those that the runs were made at."""
    return ', '.join(
        sorted({row['commit']
                for rows in runs.values() for row in rows.values()}))
