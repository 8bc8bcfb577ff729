# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The whole campaign of hostile, damaged and interrupted files.

    make reliability
    python benchmarks/reliability.py [--only WORD ...] [--share S | --quick]

Each row counts cases of a kind: how many were tried, how many ended in
anything but one sentence of ours within two seconds and 200 MB (or in a wrong
verdict), and how many lost something that was whole before. All of them go to
``work_dirs/reliability.json`` and are printed; the exit code is 1 if one is
not met. Everything is drawn by a seed.

``--share 0.1`` draws a tenth of the cases of each kind, ``--quick`` few.
"""

import vim_mm  # noqa: F401,I001 isort:skip

import argparse
import gc
import json
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

from mmengine.logging import MMLogger
from mmengine.utils import get_git_hash
from rich.table import Table

TESTS = Path(__file__).resolve().parents[1] / 'tests'
sys.path.insert(0, str(TESTS))

import _hostile  # noqa: E402
import reliability_crowd  # noqa: E402
import reliability_files  # noqa: E402
import reliability_runs  # noqa: E402
import reliability_writers  # noqa: E402
import reliability_zoo  # noqa: E402
from _speed import lighten  # noqa: E402
from reliability_cases import Campaign, Tally  # noqa: E402

from vim_mm.utils.cli import run_cli, table_console  # noqa: E402
from vim_mm.utils.files import write_atomic  # noqa: E402

CAMPAIGNS: List[Campaign] = [
    *reliability_zoo.CAMPAIGNS, *reliability_crowd.CAMPAIGNS,
    *reliability_writers.CAMPAIGNS,
    *reliability_files.CAMPAIGNS, *reliability_runs.CAMPAIGNS
]
OUT = Path('work_dirs') / 'reliability.json'


def parse_args(args: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Try what goes wrong')
    parser.add_argument(
        '--only',
        nargs='+',
        metavar='WORD',
        help='rows whose name holds one of these words')
    parser.add_argument(
        '--share', type=float, default=1., help='of the cases of each kind')
    parser.add_argument(
        '--quick',
        dest='share',
        action='store_const',
        const=.01,
        help='few cases of each kind')
    parser.add_argument('--seed', type=int, default=0, help='of all draws')
    parser.add_argument(
        '--jobs', type=int, default=2, help='rows at a time')
    parser.add_argument('--out', type=Path, default=OUT, help='JSON file')
    return parser.parse_args(args)


def run(campaign: Campaign, share: float, seed: int) -> Dict[str, Any]:
    """One row."""
    # a search for garbage among all that the campaign has imported, which
    # falls into one case or another, is no time of what is tried
    gc.collect()
    gc.freeze()
    tally, start, cpu = Tally(), time.perf_counter(), cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        try:
            campaign.run(tally, Path(folder), share, seed)
        except Exception as error:
            # a row that cannot be tried is not met, and the others are tried
            tally.check(f'it was given up: {error!r}', False)
    return dict(
        name=campaign.name,
        tried=tally.tried,
        failed=len(tally.failed),
        lost=len(tally.lost),
        met=tally.tried > 0 and not tally.failed and not tally.lost,
        seconds=round(time.perf_counter() - start, 1),
        cpu_seconds=round(cpu_seconds() - cpu, 1),
        examples=(tally.lost + tally.failed)[:5])


def cpu_seconds() -> float:
    """What this process and those that it has joined have taken of CPUs."""
    return sum(os.times()[:4])


def show(rows: List[Dict[str, Any]]) -> None:
    table = Table('what', 'tried', 'failed', 'lost', 'met', 's',
                  's of CPU')
    for row in rows:
        table.add_row(row['name'], f'{row["tried"]:,}', str(row['failed']),
                      str(row['lost']), 'yes' if row['met'] else '[red]no',
                      f'{row["seconds"]:.0f}', f'{row["cpu_seconds"]:.0f}')
    table_console().print(table)
    for row in rows:
        for example in row['examples']:
            print(f'{row["name"]}: {example}')


def main(args: Optional[Sequence[str]] = None) -> int:
    args = parse_args(args)
    MMLogger.get_instance('reliability', log_level='ERROR')
    _hostile.SLACK = 1.
    lighten()
    if not 0 < args.share <= 1:
        raise ValueError(f'--share is {args.share}; give a number above 0, 1 '
                         'at most.')
    chosen = [
        each for each in CAMPAIGNS if args.only is None or any(
            word in each.name for word in args.only)
    ]
    if not chosen:
        raise ValueError(f'No row is named like {args.only}; there are '
                         f'{[each.name for each in CAMPAIGNS]}.')
    about = dict(
        commit=get_git_hash(digits=9), share=args.share, seed=args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    found: Dict[str, Dict[str, Any]] = {}
    for row in run_all(chosen, args):
        found[row['name']] = row
        rows = [found[x.name] for x in chosen if x.name in found]
        write_atomic(args.out,
                     json.dumps(dict(about, rows=rows), indent=1) + '\n')
    show(rows)
    return int(not all(row['met'] for row in rows))


def run_all(chosen: Sequence[Campaign],
            args: argparse.Namespace) -> Iterator[Dict[str, Any]]:
    """Rows as they end, some at a time, each in a process beside others.

    The longest are the last of the list, so they begin.
    """
    with ProcessPoolExecutor(
            args.jobs, multiprocessing.get_context('fork')) as pool:
        waiting = [
            pool.submit(run, campaign, args.share, args.seed)
            for campaign in reversed(chosen)
        ]
        for done in as_completed(waiting):
            row = done.result()
            print(f'{row["name"]}: {row["tried"]:,} tried in '
                  f'{row["seconds"]:.0f} s', file=sys.stderr, flush=True)
            yield row


if __name__ == '__main__':
    run_cli(main)
