# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Means and deviations of ``mtht_evidence.py``'s runs.

    python benchmarks/mtht_summary.py work_dirs/mtht_evidence/runs.jsonl

Adds what has run to docs/evidence/runs.jsonl and writes
mtht.json, and the tables of the README, beside it. Verdicts stand in
verdicts.json there.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any, Dict, Iterator, List, Mapping

from vim_mm.utils.cli import run_cli
from vim_mm.utils.files import write_atomic

import evidence_rows  # isort:skip
from evidence_rows import (Data, Runs, column, commits, read,  # isort:skip
                           rounded, write)
from evidence_tables import fill, tables  # isort:skip

DOCS = Path(__file__).resolve().parents[1] / 'docs/evidence'
COMMAND = 'python benchmarks/mtht_evidence.py --seeds {}'
#: data set, metric, training and test images
DATA = dict(
    cls=Data('clothing', 'top-1', 1817, 341),
    det=Data('tree crowns', 'AP50', 225, 12),
    seg=Data('CamVid', 'mIoU', 367, 51),
    cifar=Data('CIFAR-10', 'top-1', 200, 300))
TASKS = ('cls', 'det', 'seg')
NAMES = {
    'moe': 'MoE',
    'moe-no-mi': 'MoE without the loss',
    'dense': 'dense twin'
}
#: adaptation of a joint trunk, and the same of the trunk before it
BEFORE = {
    'full': 'plain full',
    'dense full': 'plain full',
    'head': 'plain head',
    'dense head': 'plain head'
}


def figure(claim: str, task: str, method: str, values: Mapping[int, float],
           *compared: Any, **more: Any) -> Dict[str, Any]:
    """One row of a task, or of ``'all'``; see :func:`evidence_rows.figure`."""
    data = [DATA[t] for t in (TASKS if task == 'all' else (task, ))]
    return evidence_rows.figure(claim, data, method, values, *compared, **more)


# ------------------------------------------------------------------- claims


def joint(runs: Runs) -> Iterator[dict]:
    """(i) Three tasks in one model, and each alone."""
    for task in TASKS:
        alone = column(runs, f'single/{task}', 'metrics', task)
        dense = column(runs, 'joint/dense', 'metrics', task)
        yield figure('i', task, 'dense, this task alone', alone)
        yield figure('i', task, 'warm heads, frozen trunk',
                     column(runs, 'warm/dense', 'metrics', task),
                     'dense, this task alone', alone)
        yield figure('i', task, 'joint dense twin', dense,
                     'dense, this task alone', alone)
        for kind in ('moe', 'dense'):
            yield figure('i', task, f'joint {NAMES[kind]}, heads warmed again',
                         column(runs, f'refit/{kind}', 'metrics', task),
                         'dense, this task alone', alone)
        for kind in ('moe', 'moe-no-mi'):
            own = column(runs, f'joint/{kind}', 'metrics', task)
            yield figure('i', task, f'joint {NAMES[kind]}', own,
                         'dense, this task alone', alone)
            yield figure('i', task, f'joint {NAMES[kind]}', own,
                         'joint dense twin', dense)


def routing(runs: Runs) -> Iterator[dict]:
    """(iii) I(T;E), and single tasks extracted from the whole."""
    for key, of in (('information', 'probabilities'), ('chosen',
                                                       'chosen experts')):
        layers = {
            kind: column(runs, f'joint/{kind}', key)
            for kind in ('moe', 'moe-no-mi')
        }
        means = {
            kind: {seed: mean(each)
                   for seed, each in found.items()}
            for kind, found in layers.items()
        }
        for kind, values in means.items():
            yield figure(
                'iii',
                'all',
                f'joint {NAMES[kind]}',
                values,
                'joint MoE without the loss',
                means['moe-no-mi'] if kind == 'moe' else None,
                metric=f'I(T;E) of {of}, nats, mean of layers',
                layers=[
                    rounded(mean(each))
                    for each in zip(*layers[kind].values())
                ])
    for kind in ('moe', 'moe-no-mi'):
        yield from extracted(runs, kind)


def extracted(runs: Runs, kind: str) -> Iterator[dict]:
    """The curve of one kind of model: what is kept, and the metric."""
    curves = column(runs, f'extract/{kind}', 'rows')
    for task in TASKS:
        points: Dict[Any, Dict[int, dict]] = {}
        for seed, rows in curves.items():
            for row in rows:
                if row['task'] == task:
                    points.setdefault(row['threshold'], {})[seed] = row
        whole = {s: row['metric'] for s, row in points.get(None, {}).items()}
        for threshold, found in points.items():
            if threshold is None:
                continue
            yield figure(
                'iii',
                task,
                f'{NAMES[kind]}, extracted at threshold {threshold:g}',
                {s: row['metric']
                 for s, row in found.items()},
                'all experts',
                whole,
                kept=rounded(mean(row['kept'] for row in found.values())))


def adapted(runs: Runs) -> Iterator[dict]:
    """(ii), (iv), (vi) A new task; (v) what it does to the old ones."""
    full = column(runs, 'adapt/full', 'metrics', 'cifar')
    names = list(dict.fromkeys(n for rows in runs.values() for n in rows))
    for name in (n for n in names if n.startswith('adapt/')):
        method = name[len('adapt/'):]
        costs = next(iter(column(runs, name, 'count').values()))
        values = column(runs, name, 'metrics', 'cifar')
        claim = 'vi' if method.startswith('pruned') else 'iv'
        yield figure(claim, 'cifar', label(method), values, 'MoE: full',
                     None if method == 'full' else full, **costs)
        other = BEFORE.get(method)
        if other:
            yield figure('ii', 'cifar', label(method), values, label(other),
                         column(runs, f'adapt/{other}', 'metrics', 'cifar'))
        if 'det' in next(iter(column(runs, name, 'metrics').values())):
            yield from kept(runs, name)


def label(method: str) -> str:
    """Which trunk is adapted, and how."""
    first, _, rest = method.partition(' ')
    trunks = dict(dense='joint dense twin', plain='trunk before the joint run')
    return f'{trunks[first]}: {rest}' if first in trunks else f'MoE: {method}'


def kept(runs: Runs, name: str) -> Iterator[dict]:
    """(v) The old tasks after the new one, against before."""
    same = column(runs, name, 'identical')
    for task in TASKS:
        yield figure(
            'v',
            task,
            f"after the new task; {label(name[len('adapt/'):])}",
            column(runs, name, 'metrics', task),
            'before the new task',
            column(runs, name, 'before', task),
            identical=all(all(each) for each in same.values()))


def fewer_active(runs: Runs) -> Iterator[dict]:
    """(iv) Fewer experts a token, without training."""
    rows = column(runs, 'active', 'rows')
    for task in TASKS:
        whole = column(runs, 'joint/moe', 'metrics', task)
        for place in range(len(next(iter(rows.values()), []))):
            row = next(iter(rows.values()))[place]
            yield figure('iv', task, f"joint MoE, k = {row['k']}",
                         column(runs, 'active', 'rows', place, 'metrics',
                                task), 'k = 4', whole, **row['count'])


def summarise(runs: Runs, verdicts: Mapping[str, dict]) -> List[dict]:
    """All rows."""
    found = [
        *joint(runs), *routing(runs), *adapted(runs), *fewer_active(runs)
    ]
    for row in found:
        row.update(
            verdict=verdicts[row['claim']]['verdict'],
            command=COMMAND.format(' '.join(map(str, sorted(runs)))),
            commit=commits(runs))
    return sorted(found, key=lambda row: row['claim'])


def main() -> None:
    parser = argparse.ArgumentParser(description='Summarise evidence')
    parser.add_argument('runs', type=Path, nargs='*')
    args = parser.parse_args()
    log, verdicts = DOCS / 'runs.jsonl', DOCS / 'verdicts.json'
    runs = read(*([log] if log.exists() else []), *args.runs)
    write(log, runs)
    said = json.loads(verdicts.read_text())
    rows = summarise(runs, said)
    write_atomic(DOCS / 'mtht.json',
                 json.dumps(rows, indent=1, ensure_ascii=False) + '\n')
    readme = DOCS / 'README.md'
    write_atomic(readme, fill(readme.read_text(), tables(rows, said)))


if __name__ == '__main__':
    run_cli(main)
