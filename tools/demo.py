# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""All stages on two CPU cores: ``tools/demo.py [vim | zoo | mtht | student]``.

Prepares real data and trunk weights from pip packages, then, with ``vim``,
learns modules on a frozen trunk (midstream) and fuses the zoo for few-shot
tasks (downstream) beside their baselines; with ``zoo``, learns four modules
more on other real data, beside those of the demo; with ``mtht``, trains one
mixture of experts on three data sets of three kinds, takes its tasks out,
adapts it and adds a task; with ``student``, turns large models into small ones
from few images, and these into ONNX files. It reports what came out. Every
step is a process of its own and runs configs of ``configs``; finished steps
are reused as long as neither their config nor what they read has changed.
"""

# Comes first: it makes `_base_ = 'vim_mm::…'` and `'mmseg::…'` resolve.
import vim_mm  # noqa: F401,I001 isort:skip

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import List

from rich.console import Console
from rich.table import Table

from vim_mm.demo import common, mtht, steps, student, zoo
from vim_mm.report.comparison import LIBRARIES
from vim_mm.report.page import Page, write_report
from vim_mm.report.steps import Step
from vim_mm.utils.cli import run_cli, table_console
from vim_mm.utils.processes import PROCESSES, run_logged

#: each has STEPS, TITLE, INTRO, TERMS, DOCS, finished() and run()
DEMOS = dict(vim=steps, zoo=zoo, mtht=mtht, student=student)
#: where what they learn goes, in work_dirs
FOLDERS = dict(
    vim='demo', zoo='zoo-demo', mtht='demo_mtht', student='demo_student')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Run a demo')
    parser.add_argument(
        'demo',
        nargs='?',
        choices=list(DEMOS),
        default='vim',
        help='modules beside a frozen trunk, four more of them, one mixture '
        'of experts, or small models from few images (default: %(default)s)')
    parser.add_argument(
        '--work-dir',
        type=Path,
        help='folder for what is learned, logs and report (default: '
        'work_dirs/demo, or zoo-demo, demo_mtht, demo_student there)')
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        help='of all steps; the data stay as they are (default: 0). Give '
        'another seed a --work-dir of its own')
    args = parser.parse_args()
    if args.work_dir is None:
        args.work_dir = Path('work_dirs') / FOLDERS[args.demo]
    return args


def prepare(work_dir: Path) -> None:
    """Prepare in a process of its own: what is to be forked runs no torch.

    Raises:
        SystemExit: If it fails; it has said why.
    """
    process = PROCESSES.Process(
        target=run_cli, args=(partial(prepare_here, work_dir), ))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(process.exitcode)


def prepare_here(work_dir: Path) -> None:
    """Prepare in this process, a line for each part."""
    common.prepare(work_dir, partial(print, flush=True))


def show_table(steps: List[Step], console: Console) -> None:
    """Print all rows the way the report shows them."""
    table = Table(title='What came out')
    for column in ('step', 'task', 'method', 'metric'):
        table.add_column(column)
    for column in ('value', 'train', 'test', 'seconds', 'MB'):
        table.add_column(column, justify='right')
    for step in steps:
        for row in step.rows:
            table.add_row(row.step, row.task, row.method, row.metric,
                          f'{row.value:.3f}', str(row.n_train),
                          str(row.n_test), f'{row.seconds:.0f}',
                          f'{row.peak_mb:.0f}')
        table.add_section()
    console.print(table)


def main() -> None:
    args = parse_args()
    demo = DEMOS[args.demo]
    console = table_console()
    start = time.perf_counter()
    console.print('Preparing trunk weights and data from pip packages')
    prepare(args.work_dir)
    prepared = common.load(common.PREPARE, args.work_dir)
    page = Page(demo.TITLE, demo.INTRO.format(seed=args.seed), demo.TERMS,
                demo.DOCS)
    names, found = list(demo.STEPS), []
    for index, name in enumerate(names, 1):
        finished = demo.finished(name, args.work_dir, args.seed)
        console.print(f'{index}/{len(names)} {demo.STEPS[name].title}: '
                      f'{"reused" if finished else "running"}')
        if not finished:
            run_logged(f'The step {name}',
                       partial(demo.run, name, args.work_dir, args.seed),
                       args.work_dir / name / 'log.txt', console, LIBRARIES)
        found.append(common.load(name, args.work_dir))
        write_report(args.work_dir, page, [*found, prepared])
        console.print(f'   report so far: {args.work_dir}/report.html')
    show_table(found, console)
    minutes = (time.perf_counter() - start) / 60
    console.print(f'Done in {minutes:.1f} minutes. See '
                  f'{args.work_dir}/report.html and report.json.')


if __name__ == '__main__':
    run_cli(main)
