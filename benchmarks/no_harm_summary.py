# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Means and deviations of ``no_harm.py``'s runs, and whether promises hold.

    python benchmarks/no_harm_summary.py work_dirs/no_harm/runs.jsonl

Adds what has run to docs/evidence/vim_runs.jsonl and writes vim.json and the
tables of vim.md beside it; of heads of another ``--length`` to files of their
own, such as vim-2.json. Verdicts follow from the figures.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple

from vim_mm.evaluation.transferability import library
from vim_mm.features.module_rows import FUSED, TRUNK, UNIFORM
from vim_mm.utils.cli import run_cli

from evidence_rows import (Data, Runs, column,  # isort:skip
                           figure, read, rounded, write)
from evidence_tables import publish  # isort:skip
from no_harm_tasks import DEVELOP, MOST_TESTS, TASKS  # isort:skip

DOCS = Path(__file__).resolve().parents[1] / 'docs/evidence'
COMMAND = 'python benchmarks/no_harm.py --seeds {}'
#: images that modules were tried on where a run does not say it
PICTURES = 100
SINGLE = 'best single'
#: claims: what they say
CLAIMS = dict(
    trunk='nowhere worse than the frozen trunk by more than one standard '
    'error',
    uniform='nowhere worse than uniform weights by more than one',
    single='nowhere worse than the best single module by more than one',
    gain='where a module helps by more than two, 80 % of the best gain',
    order='the score orders trunk, single, uniform and fused as the trained '
    'head does: weighted tau of 0.6, mean over tasks')


class Paired(NamedTuple):
    """A difference within seeds, and its standard error over them."""
    value: float
    error: float


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Paired:
    """How much more the first gave."""
    both = [first[s] - second[s] for s in sorted(set(first) & set(second))]
    error = stdev(both) / len(both)**.5 if len(both) > 1 else float('inf')
    return Paired(mean(both), error)


def methods(runs: Runs, task: str) -> Dict[str, Dict[int, float]]:
    """By method, what it gave by seed."""
    names = dict.fromkeys(
        row['method'] for rows in runs.values() for row in rows.values()
        if row['task'] == task)
    found = {
        name: column(runs, f'{task}/{name}', 'value')
        for name in names
    }
    whole = set.intersection(*map(set, found.values())) if found else set()
    return {
        name: {seed: values[seed]
               for seed in sorted(whole)}
        for name, values in found.items()
    }


def best_single(found: Mapping[str, Mapping[int, float]]) -> str:
    """The module that is best on average, by the reported images."""
    singles = [name for name in found if name.startswith('single: ')]
    return max(singles, key=lambda name: mean(found[name].values()))


def tau(runs: Runs, task: str) -> float:
    """Of the order by score and the true one, mean over seeds."""
    stats, found = library('scipy.stats'), []
    for rows in runs.values():
        known = [
            row for row in rows.values()
            if row['task'] == task and 'score' in row
        ]
        # one setting counts once, whatever it is called
        settings = {tuple(row['weights'].values()): row for row in known}
        values = [(row['score'], row['value']) for row in settings.values()]
        if len(values) > 2:
            found.append(float(stats.weightedtau(*zip(*values)).statistic))
    return mean(found) if found else float('nan')


def rows(runs: Runs) -> Iterator[dict]:
    """The figures of every task."""
    for name, task in TASKS.items():
        found = methods(runs, name)
        if not found or not found.get(FUSED):
            continue
        tests = min(MOST_TESTS, (task.tests + 1) // 2)
        data = [Data(task.data, task.metric, task.num_train, tests)]
        for method, values in found.items():
            more = dict(foreign=task.foreign)
            if method == FUSED:
                more.update(costs(runs, name))
            yield figure('trunk', data, method, values, TRUNK,
                         None if method == TRUNK else found[TRUNK], **more)
        for claim, other in (('uniform', UNIFORM), ('single',
                                                    best_single(found))):
            yield figure(claim, data, FUSED, found[FUSED], other,
                         found[other])
        share = gained(found)
        if share is not None:
            yield figure('gain', data, FUSED, {0: 100 * share},
                         metric='% of the best gain')
        yield figure('order', data, 'score', {0: tau(runs, name)},
                     metric='weighted tau')


def costs(runs: Runs, task: str) -> Dict[str, float]:
    """What finding the weights took, mean over seeds."""
    return {
        key: rounded(mean(column(runs, f'{task}/{FUSED}', key).values()))
        for key in ('tries', 'passes', 'search_seconds')
    }


def gained(found: Mapping[str, Mapping[int, float]]) -> Any:
    """The share of the best gain, None if no module helps enough."""
    single = paired(found[best_single(found)], found[TRUNK])
    if not single.value > 2 * single.error:
        return None
    best = max(mean(values.values()) for values in found.values())
    trunk = mean(found[TRUNK].values())
    return (mean(found[FUSED].values()) - trunk) / (best - trunk)


def judge(runs: Runs) -> Dict[str, dict]:
    """By claim, a verdict and why."""
    worse: Dict[str, List[str]] = {'trunk': [], 'uniform': [], 'single': []}
    shares, taus, tried = {}, [], []
    for name in TASKS:
        found = methods(runs, name)
        if not found or not found.get(FUSED):
            continue
        tried.append(name)
        others = dict(
            trunk=TRUNK, uniform=UNIFORM, single=best_single(found))
        for claim, other in others.items():
            gain = paired(found[FUSED], found[other])
            if gain.value < -gain.error:
                worse[claim].append(
                    f'{name} ({gain.value:+.1f} ± {gain.error:.1f})')
        share = gained(found)
        if share is not None:
            shares[name] = share
        taus.append(tau(runs, name))
    said = {
        claim: (not names, f'{len(tried)} tasks; worse in: '
                f'{", ".join(names) or "none"}')
        for claim, names in worse.items()
    }
    said['gain'] = (all(share >= .8 for share in shares.values()), ', '.join(
        f'{name} {100 * share:.0f} %' for name, share in shares.items())
                    or 'no module helps that much in any task')
    said['order'] = (mean(taus) >= .6, f'mean {mean(taus):.2f}; by task '
                     + ', '.join(f'{name} {value:.2f}'
                                 for name, value in zip(tried, taus)))
    return {
        claim: dict(
            claim=CLAIMS[claim],
            verdict='holds' if holds else 'does not hold',
            reason=why)
        for claim, (holds, why) in said.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description='Summarise evidence')
    parser.add_argument('runs', type=Path, nargs='*')
    parser.add_argument(
        '--length', type=int, default=1, help='that of the runs')
    args = parser.parse_args()
    one = args.length == 1
    name = 'vim' if one else f'vim-{args.length}'
    log = DOCS / f'{name}_runs.jsonl'
    runs = read(*([log] if log.exists() else []), *args.runs)
    runs = {seed: of for seed, of in runs.items() if seed < DEVELOP}
    write(log, runs)
    pictures = {
        row.get('pictures', PICTURES)
        for found in runs.values() for row in found.values()
    }
    length = '' if one else f' --length {args.length}'
    publish(DOCS, name, runs, judge(runs), list(rows(runs)),
            f'{COMMAND}{length} --pictures '
            f'{" or ".join(map(str, sorted(pictures)))}')


if __name__ == '__main__':
    run_cli(main)
