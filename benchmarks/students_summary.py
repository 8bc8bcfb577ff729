# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Means and deviations of ``students_evidence.py``'s runs.

    python benchmarks/students_summary.py \\
        work_dirs/students_evidence/runs.jsonl

Adds what has run to docs/evidence/students_runs.jsonl and writes ota.json,
tdmr.json and the tables of students.md beside it. Verdicts stand in
students_verdicts.json there.
"""

import argparse
import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional

from vim_mm.utils.cli import run_cli
from vim_mm.utils.files import write_atomic

import evidence_rows  # isort:skip
from evidence_rows import Data, Runs, column, commits  # isort:skip
from evidence_rows import read, write  # isort:skip
from evidence_tables import fill, tables  # isort:skip

DOCS = Path(__file__).resolve().parents[1] / 'docs/evidence'
COMMAND = 'python benchmarks/students_evidence.py --seeds {}'
SHOTS, CURVE, CLASSES, TEST = 10, (5, 10, 20, 40), 10, 341
#: claim: the system that makes it
SYSTEMS = {
    'teacher': 'ota',
    'images': 'ota',
    'release': 'ota',
    'ota': 'ota',
    'proxy': 'tdmr',
    'progress': 'tdmr',
    'cost': 'tdmr',
    'tdmr': 'tdmr'
}
UPSTREAM = Data('COCO, crops of 64 px', '', 128, 128)
#: part of its card, field, name
RELEASE = (('metrics', 'l1_train', 'L1, training images'),
           ('metrics', 'l1_held_out', 'L1, held-out images'),
           ('metrics', 'codes_in_use', 'share of codes in use'),
           ('metrics', 'perplexity', 'perplexity of 512 codes'),
           ('leak', 'membership_auc', 'AUC of membership inference'),
           ('leak', 'samples_auc',
            'AUC, random codes nearer to training'), ('leak', 'samples_p',
                                                      'p of that'))
ALONE = 'student alone'
FULL = 'TDMR, full method'


def clothes(shots: int = SHOTS) -> List[Data]:
    """Clothes, with so many images of each class."""
    return [Data('clothing', 'top-1', shots * CLASSES, TEST)]


def figure(claim: str, data: List[Data], method: str, values: Dict[int, float],
           *compared: Any, **more: Any) -> Optional[dict]:
    """A row; None where nothing was measured."""
    if not values:
        return None
    return evidence_rows.figure(claim, data, method, values, *compared, **more)


def top1(runs: Runs, run: str) -> Dict[int, float]:
    """Top-1 in percent, by seed."""
    return column(runs, run, 'top1')


def release(runs: Runs) -> Iterator[Optional[dict]]:
    """What the upstream release keeps of its images, and what it leaks."""
    for part, field, metric in RELEASE:
        yield figure(
            'release', [UPSTREAM],
            'upstream release',
            column(runs, 'release', part, field),
            metric=metric)


def teachers(runs: Runs) -> Iterator[Optional[dict]]:
    """IRF, its control and its variants."""
    control = top1(runs, 'teacher/lp-ft')
    for kind, label in (('full', 'fine-tuned from a zero head'),
                        ('lp-ft', 'LP-FT: head first, on originals'),
                        ('irf', 'IRF: head first, re-represented'),
                        ('irf, scale 1', 'IRF, images not enlarged'),
                        ('irf, both', 'IRF, then originals and copies'),
                        ('irf, consistent', 'IRF, consistent features')):
        yield figure('teacher', clothes(), label, top1(runs,
                                                       f'teacher/{kind}'),
                     'LP-FT', None if kind == 'lp-ft' else control)
    for kind, label in (('lp-ft', 'head alone, on originals'),
                        ('irf', 'head alone, re-represented'),
                        ('irf, scale 1', 'head alone, images not enlarged')):
        yield figure('teacher', clothes(), label,
                     column(runs, f'teacher/{kind}', 'warm'))


def images(runs: Runs) -> Iterator[Optional[dict]]:
    """The ladder of images, one teacher, equal steps."""
    alone, plain = (top1(runs, f'student/{m}') for m in ('alone', 'kd'))
    yield figure('images', clothes(), ALONE, alone)
    yield figure('images', clothes(), 'KD on the few', plain, ALONE, alone)
    for method in ('kd, fine-tuned teacher', 'kd + re-represented',
                   'kd + heavy augmentation', 'kd + noise', 'kd + digg',
                   'kd + digg, latent', 'ota',
                   'ota, IRF teacher', 'kd + all unlabelled'):
        own = top1(runs, f'student/{method}')
        label = method.replace('kd', 'KD').replace('digg', 'DIGG')
        if method.startswith('ota'):
            label = method.replace('ota', 'OTA: KD + re-represented + DIGG')
        yield figure('images', clothes(), label, own, ALONE, alone)
        yield figure('images', clothes(), label, own, 'KD on the few', plain)
    for kind in ('digg', 'digg, latent', 'noise'):
        for field, metric in (('seconds', 'seconds an image'),
                              ('start', 'loss at the guide'), ('loss',
                                                               'loss')):
            yield figure(
                'images',
                clothes(),
                f'generation: {kind}',
                column(runs, f'generate/{kind}', field),
                metric=metric)


def tdmr(runs: Runs) -> Iterator[Optional[dict]]:
    """The proxy space, the schedule, and what they are compared with."""
    alone = top1(runs, 'student/alone')
    full = top1(runs, 'student/tdmr')
    probe = top1(runs, 'student/linear probe, logits')
    yield figure('proxy', clothes(), ALONE, alone)
    yield figure('proxy', clothes(), FULL, full, ALONE, alone)
    yield figure('proxy', clothes(), FULL, full, 'KD from a linear probe',
                 probe)
    for method, label in (('linear probe, logits', 'KD from a linear probe'),
                          ('hint', 'hint, without reprogramming'),
                          ('aft', 'AFT'), ('kd, fine-tuned teacher',
                                           'KD from a fine-tuned CNN')):
        yield figure('proxy', clothes(), label,
                     top1(runs, f'student/{method}'), ALONE, alone)
    full = top1(runs, 'student/tdmr')
    yield figure('progress', clothes(), FULL, full)
    for method in ('constant', 'reversed', 'features alone', 'logits alone',
                   'without phase I', 'cka', 'co-trained'):
        yield figure('progress', clothes(), f'TDMR: {method}',
                     top1(runs, f'student/{method}'), FULL, full)


def costs(runs: Runs) -> Iterator[Optional[dict]]:
    """What TDMR's first run costs; later ones find the store filled."""
    for field, metric in (('forwards', 'images through foundation models'),
                          ('backwards', 'images back through them'),
                          ('seconds', 'seconds of training, busy core'),
                          ('trainable_params', 'parameters that learn')):
        yield figure('cost', clothes(), FULL,
                     column(runs, 'views/tdmr', 'cost', field),
                     metric=metric)


def curves(runs: Runs) -> Iterator[Optional[dict]]:
    """More labels; and a student that knows nothing."""
    for shots in CURVE:
        prefix = 'student' if shots == SHOTS else shots
        teacher = 'teacher/lp-ft' if shots == SHOTS else f'{shots}/teacher'
        yield figure('ota', clothes(shots),
                     f'{shots} a class: teacher (LP-FT)', top1(runs, teacher),
                     ALONE, top1(runs, f'{prefix}/alone'))
        yield from point(runs, str(prefix), f'{shots} a class', shots)
    yield from point(runs, 'scratch', 'from scratch', SHOTS)


def point(runs: Runs, prefix: str, label: str,
          shots: int) -> Iterator[Optional[dict]]:
    """Students of one point of the curve, all against the one alone."""
    alone = top1(runs, f'{prefix}/alone')
    yield figure('ota', clothes(shots), f'{label}: {ALONE}', alone)
    slowly = top1(runs, f'{prefix}/alone, slowly')
    yield figure('ota', clothes(shots), f'{label}: {ALONE}, slowly',
                 slowly, ALONE, alone)
    for claim, method in (('ota', 'kd'), ('ota', 'kd + re-represented'),
                          ('ota', 'ota'), ('tdmr', 'tdmr')):
        name = method.replace('kd', 'KD')
        name = name if name != method else method.upper()
        yield figure(claim, clothes(shots), f'{label}: {name}',
                     top1(runs, f'{prefix}/{method}'), ALONE, alone)


def summarise(runs: Runs, verdicts: Mapping[str, dict]) -> List[dict]:
    """All rows that have values, in the order of their claims."""
    found = []
    for rows in (release, teachers, images, tdmr, costs, curves):
        found += filter(None, rows(runs))
    for row in found:
        row.update(
            verdict=verdicts[row['claim']]['verdict'],
            command=COMMAND.format(' '.join(map(str, sorted(runs)))),
            commit=commits(runs))
    order = list(SYSTEMS)
    return sorted(found, key=lambda row: order.index(row['claim']))


def main() -> None:
    parser = argparse.ArgumentParser(description='Summarise evidence')
    parser.add_argument('runs', type=Path, nargs='*')
    args = parser.parse_args()
    log = DOCS / 'students_runs.jsonl'
    runs = read(*([log] if log.exists() else []), *args.runs)
    write(log, runs)
    said = json.loads((DOCS / 'students_verdicts.json').read_text())
    rows = summarise(runs, said)
    for system in ('ota', 'tdmr'):
        own = [row for row in rows if SYSTEMS[row['claim']] == system]
        write_atomic(DOCS / f'{system}.json',
                     json.dumps(own, indent=1, ensure_ascii=False) + '\n')
    page = DOCS / 'students.md'
    write_atomic(page, fill(page.read_text(), tables(rows, said)))


if __name__ == '__main__':
    run_cli(main)
