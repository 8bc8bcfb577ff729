# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Means and deviations of ``zoo_curve.py``'s runs, and what they say.

    python benchmarks/zoo_curve_summary.py work_dirs/zoo_curve/runs.jsonl

Adds what has run to docs/evidence/zoo_runs.jsonl and writes zoo.json and the
tables of zoo.md beside it. Verdicts follow from the figures.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Tuple

from vim_mm.features.module_rows import TRUNK
from vim_mm.utils.cli import run_cli

from evidence_rows import (Data, Runs, column,  # isort:skip
                           figure, read, write)
from evidence_tables import publish  # isort:skip
from no_harm_tasks import MOST_TESTS, TASKS  # isort:skip
from zoo_curve import COUNTS, CURVES, OWN  # isort:skip

DOCS = Path(__file__).resolve().parents[1] / 'docs/evidence'
COMMAND = 'python benchmarks/zoo_curve.py --seeds {}'
ALL = 'all'
#: modules of the zoo
NUM = 8
KINDS = dict(cls='classification', seg='segmentation', det='detection')
#: claims: what they say
CLAIMS = {
    **{
        kind: f'in {name} all modules are above the frozen trunk and above '
        'the first two, each by more than one standard error'
        for kind, name in KINDS.items()
    }, 'harm': 'for no data set are all modules below the frozen trunk by '
    'more than one standard error',
    'images': 'all modules add more to the fewest images than to the most, by '
    'more than one standard error'
}
HOLDS, NOT, UNKNOWN = 'holds', 'does not hold', 'not known'
#: pairs of data set and seed, or seeds, that a verdict takes
LEAST = 3
FEW = f'a verdict takes {LEAST}'
NONE = 'none has been run'
#: by data set and seed
Values = Dict[Tuple[str, int], float]


class Mean(NamedTuple):
    """Of differences, and its standard error."""
    value: float
    error: float

    @property
    def is_real(self) -> bool:
        """Whether it is above zero by more than the error."""
        return self.value > self.error

    def __str__(self) -> str:
        error = f' ± {self.error:.1f}' * (self.error < float('inf'))
        return f'{self.value:+.1f}{error}'


def average(values: Mapping[Any, float]) -> Mean:
    """The mean of what there is."""
    found = list(values.values())
    error = stdev(found) / len(found)**.5 if len(found) > 1 else float('inf')
    return Mean(mean(found), error)


def less(first: Mapping[Any, float], second: Mapping[Any, float]) -> Values:
    """Differences of what both have."""
    both = sorted(set(first) & set(second))
    return {key: first[key] - second[key] for key in both}


def measured(runs: Runs, data: str, size: int, what: Any) -> Dict[int, float]:
    """Values of a data set by seed.

    Args:
        runs (Runs): All.
        data (str): The data set.
        size (int): Images.
        what: A number of modules, :data:`ALL`, or :data:`OWN`.
    """
    if what == ALL:
        what = whole(data)
    return column(runs, f'{data}/{size}/{what}', 'value')


def whole(data: str) -> int:
    """How many modules do not know a data set."""
    return NUM - len(CURVES[data].knowing)


def gains(runs: Runs, data: str, size: int, what: Any) -> Dict[int, float]:
    """Over the frozen trunk, by seed."""
    return less(
        measured(runs, data, size, what), measured(runs, data, size, 0))


def pooled(runs: Runs, kind: str, what: Any) -> Values:
    """Gains of a kind's data sets at their middle size, by set and seed."""
    return {(data, seed): gain
            for data in of_kind(kind) for seed, gain in gains(
                runs, data, CURVES[data].middle, what).items()}


def of_kind(kind: str) -> List[str]:
    """Data sets of a kind."""
    return [
        data for data, curve in CURVES.items()
        if TASKS[curve.task].kind == kind
    ]


def about(data: str, size: int) -> Data:
    """What figures are of."""
    task = CURVES[data].of(size)
    each = ' a class' if task.per_class else ''
    name = task.data.split(',')[0]
    return Data(f'{name}, {size}{each}', task.metric, task.num_train,
                min(MOST_TESTS, (task.tests + 1) // 2))


def rows(runs: Runs) -> Iterator[dict]:
    """The figures of every data set, and of every kind."""
    for kind in KINDS:
        for data in of_kind(kind):
            yield from _modules(runs, kind, data)
        for what in (*COUNTS, ALL, OWN):
            found = pooled(runs, kind, what)
            if found:
                yield _of_all(kind, what, found)
    for data, curve in CURVES.items():
        for size in curve.sizes:
            found = measured(runs, data, size, ALL)
            if found:
                yield figure('images', [about(data, size)],
                             _called(whole(data)), found, TRUNK,
                             measured(runs, data, size, 0))


def _of_all(kind: str, what: Any, found: Values) -> dict:
    """The gain of all data sets of a kind that have been run."""
    tried = dict.fromkeys(data for data, _ in found)
    row = figure(
        kind, [about(data, CURVES[data].middle) for data in tried],
        f'{_called(what)}, pairs of data set and seed: {len(found)}', found,
        metric='gain over the frozen trunk')
    return dict(row, seeds=len({seed for _, seed in found}))


def _modules(runs: Runs, kind: str, data: str) -> Iterator[dict]:
    size = CURVES[data].middle
    trunk = measured(runs, data, size, 0)
    for what in (0, *COUNTS, whole(data), OWN):
        found = measured(runs, data, size, what)
        if found:
            yield figure(kind, [about(data, size)], _called(what), found,
                         TRUNK, trunk if what else None)


def _called(what: Any) -> str:
    if what == ALL:
        return 'all modules'
    if what == OWN:
        return OWN
    return f'{what} modules' if what else TRUNK


def judge(runs: Runs) -> Dict[str, dict]:
    """By claim, a verdict and why."""
    said = {kind: _of_kind(runs, kind) for kind in KINDS}
    said['harm'], said['images'] = _harm(runs), _images(runs)
    return {
        claim: dict(claim=CLAIMS[claim], verdict=verdict, reason=why)
        for claim, (verdict, why) in said.items()
    }


def _of_kind(runs: Runs, kind: str) -> Tuple[str, str]:
    found = {what: pooled(runs, kind, what) for what in (*COUNTS, ALL, OWN)}
    if not found[ALL]:
        return UNKNOWN, NONE
    gain = average(found[ALL])
    more = average(less(found[ALL], found[COUNTS[0]]))
    each = '; '.join(f'{_called(what)} {average(found[what])}'
                     for what in (*COUNTS, ALL) if found[what])
    why = (f'over the frozen trunk, pairs of data set and seed: '
           f'{len(found[ALL])}; {each}; all over the first two {more}')
    if found[OWN]:
        gap = average(found[OWN])
        why += f'; an own module {gap}'
        if gap.value <= 0 or len(found[OWN]) > 1 and not gap.is_real:
            why += ', so there is no gap that could narrow'
    if len(found[ALL]) < LEAST:
        return UNKNOWN, f'{why}; {FEW}'
    return HOLDS if gain.is_real and more.is_real else NOT, why


def _harm(runs: Runs) -> Tuple[str, str]:
    worse, tried = [], 0
    for data, curve in CURVES.items():
        found = gains(runs, data, curve.middle, ALL)
        if len(found) >= LEAST:
            tried, gain = tried + 1, average(found)
            if gain.value < -gain.error:
                worse.append(f'{data} ({gain})')
    if not tried:
        return UNKNOWN, f'no data set has {LEAST} seeds'
    return (NOT if worse else HOLDS,
            f'{tried} data sets; below it: {", ".join(worse) or "none"}')


def _images(runs: Runs) -> Tuple[str, str]:
    found: Values = {}
    for data, curve in CURVES.items():
        few, many = (gains(runs, data, size, ALL)
                     for size in (curve.sizes[0], curve.sizes[-1]))
        found.update(((data, seed), value)
                     for seed, value in less(few, many).items())
    if not found:
        return UNKNOWN, NONE
    difference = average(found)
    why = f'{difference}, pairs of data set and seed: {len(found)}'
    if len(found) < LEAST:
        return UNKNOWN, f'{why}; {FEW}'
    return HOLDS if difference.is_real else NOT, why


def main() -> None:
    parser = argparse.ArgumentParser(description='Summarise evidence')
    parser.add_argument('runs', type=Path, nargs='*')
    args = parser.parse_args()
    log = DOCS / 'zoo_runs.jsonl'
    runs = read(*([log] if log.exists() else []), *args.runs)
    write(log, runs)
    publish(DOCS, 'zoo', runs, judge(runs), list(rows(runs)), COMMAND)


if __name__ == '__main__':
    run_cli(main)
