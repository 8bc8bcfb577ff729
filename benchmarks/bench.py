# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""All targets of performance, each measured beside its opponent.

    make bench
    python benchmarks/bench.py [--only WORD ...] [--quick] [--list]

Ours and its opponent run in turns within one process, A B A B, after a
warm-up; the ratio is that of the medians. Rows that need a GPU are listed as
not run where there is none. All rows go to ``benchmarks/results/latest.json``
and are printed. A row that fails says why, the others go on, and the exit
code is 1.

``--quick`` takes a tiny model and two repeats: it shows that every row works,
and its figures mean nothing.
"""

import vim_mm  # noqa: F401,I001 isort:skip

import argparse
import gc
import json
import platform
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

import bench_bank
import bench_distillation
import bench_export
import bench_generation
import bench_moe
import bench_ranking
import bench_store
import bench_tasks
import bench_training
import bench_zoo
import torch
from harness import Benchmark, Goal, Result, Settings
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.utils import get_git_hash
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vim_mm.utils.cli import run_cli
from vim_mm.utils.files import write_atomic

RESULTS = Path(__file__).parent / 'results' / 'latest.json'
BENCHMARKS: List[Benchmark] = [
    *bench_bank.BENCHMARKS, *bench_distillation.BENCHMARKS,
    *bench_export.BENCHMARKS, *bench_generation.BENCHMARKS,
    *bench_moe.BENCHMARKS, *bench_ranking.BENCHMARKS,
    *bench_store.BENCHMARKS, *bench_tasks.BENCHMARKS,
    *bench_training.BENCHMARKS, *bench_zoo.BENCHMARKS
]
FAILED = 'failed: '
Row = Dict[str, Any]


def parse_args(args: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Measure all targets')
    parser.add_argument(
        '--only',
        nargs='+',
        metavar='WORD',
        help='benchmarks whose name holds one of these words')
    parser.add_argument(
        '--quick', action='store_true', help='see whether every row works')
    parser.add_argument(
        '--list', action='store_true', help='print names, measure nothing')
    parser.add_argument(
        '--device', default=get_device(), help='of rows that run on any')
    parser.add_argument(
        '--out',
        type=Path,
        help=f'JSON file; {RESULTS.name} where all rows are measured in full')
    return parser.parse_args(args)


def chosen(only: Optional[Sequence[str]]) -> List[Benchmark]:
    """The benchmarks that ``--only`` names.

    Raises:
        ValueError: If no name holds any of the words.
    """
    found = [
        bench for bench in BENCHMARKS
        if only is None or any(word in bench.name for word in only)
    ]
    if not found:
        raise ValueError(f'No benchmark is named like {list(only)}; '
                         '`--list` prints the names.')
    return found


def machine() -> Dict[str, Any]:
    """What the figures were taken on."""
    name = platform.processor() or platform.machine()
    cpus = Path('/proc/cpuinfo')
    if cpus.exists():
        models = re.findall(r'model name\s*: (.+)', cpus.read_text())
        name = models[0] if models else name
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return dict(
        cpu=name,
        threads=torch.get_num_threads(),
        gpu=gpu,
        python=platform.python_version())


def measure(bench: Benchmark, settings: Settings) -> Iterator[Row]:
    """A row for each goal, whatever happens."""
    results, note = bench.run(settings), ''
    if bench.needs_gpu and not torch.cuda.is_available():
        note = 'not run: no GPU'
    for goal in bench.goals:
        result = None
        if not note:
            try:
                result = next(results)
            except Exception as error:  # the other rows go on
                note = FAILED + sentence(error)
        yield row(goal, result, settings, note)
    gc.collect()


def sentence(error: Exception) -> str:
    """The kind of an error, and how it begins."""
    text = '; '.join(re.findall(r'\S.*\S', str(error))[:2])
    return f'{type(error).__name__}: {text[:200] or "no message"}'


def row(goal: Goal, result: Optional[Result], settings: Settings,
        note: str) -> Row:
    """What is kept of a goal; ``met`` is None where nothing was measured."""
    if result is None:
        result = Result(None, runs=0)
    met = None
    if result.ratio is not None and not settings.quick:
        met = result.ratio <= goal.target
    return dict(
        name=goal.name,
        against=goal.against,
        ratio=rounded(result.ratio, 4),
        target=goal.target,
        met=met,
        median_s=rounded(result.median_s, 6),
        peak_mb=rounded(result.peak_mb, 1),
        runs=result.runs,
        note=note)


def rounded(value: Optional[float], digits: int) -> Optional[float]:
    return None if value is None else round(value, digits)


def table(rows: Sequence[Row]) -> Table:
    """All rows for people."""
    shown = Table(title='Targets')
    for name in ('what', 'against'):
        shown.add_column(name)
    for name in ('ratio', 'target', 'met', 'median', 'peak', 'runs'):
        shown.add_column(name, justify='right', no_wrap=True)
    shown.add_column('note')
    words = {True: '[green]yes', False: '[red]no', None: ''}
    for each in rows:
        shown.add_row(each['name'], each['against'],
                      shown_as(each['ratio'], '.3f'), f'{each["target"]:g}',
                      words[each['met']],
                      shown_as(each['median_s'], '.4f', ' s'),
                      shown_as(each['peak_mb'], '.0f',
                               ' MB'), str(each['runs']), escape(each['note']))
    return shown


def shown_as(value: Optional[float], digits: str, unit: str = '') -> str:
    return '' if value is None else f'{value:{digits}}{unit}'


def main(args: Optional[Sequence[str]] = None) -> int:
    args = parse_args(args)
    benches, out = chosen(args.only), args.out
    if args.list:
        print('\n'.join(bench.name for bench in benches))
        return 0
    if out is None and not args.quick and args.only is None:
        out = RESULTS
    MMLogger.get_current_instance().setLevel('ERROR')
    torch.manual_seed(0)
    settings = Settings(args.device, args.quick)
    report: Dict[str, Any] = dict(
        commit=get_git_hash(digits=7),
        time=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        torch=torch.__version__,
        machine=machine(),
        device=args.device,
        quick=args.quick,
        rows=[])
    console = Console(width=150)
    for bench in benches:
        console.print(f'[dim]{bench.name} ...', highlight=False)
        report['rows'] += measure(bench, settings)
        if out is not None:  # after every benchmark: what is done is kept
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(out, json.dumps(report, indent=1) + '\n')
    console.print(table(report['rows']))
    return int(any(each['note'].startswith(FAILED) for each in report['rows']))


if __name__ == '__main__':
    run_cli(main)
