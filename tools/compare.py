# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Compare a fusion with trunk and modules: ``tools/compare.py CONFIG``.

Trains a fused downstream config beside its baselines: the frozen trunk, single
modules, uniform weights and, with ``--full``, the whole trunk, each over
several seeds. A table and a report page say what to use. Runs that have
finished are reused as long as their config, modules and trunk are the same;
one that breaks is named, and the others go on.
"""

# Comes first: it makes `_base_ = 'vim_mm::…'` and `'mmseg::…'` resolve.
import vim_mm  # noqa: F401,I001 isort:skip

import argparse
import sys
import time
from pathlib import Path
from typing import Dict, List, Optional

from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from vim_mm.report.compare import Comparison, best_modules
from vim_mm.report.comparison import LIBRARIES
from vim_mm.report.page import Page, write_report
from vim_mm.report.steps import Step
from vim_mm.report.variants import CONFIGURED, fusing_config
from vim_mm.report.verdicts import (FULL, ONE_SEED, by_method, claims, gain,
                                    spread)
from vim_mm.utils.cli import run_cli, table_console, visible
from vim_mm.utils.config import add_cfg_options, read_config
from vim_mm.utils.data import check_data
from vim_mm.utils.messages import first_lines
from vim_mm.utils.processes import RunError, run_logged
from vim_mm.zoo import Zoo

TERMS = {
    'frozen trunk': 'a foundation model whose weights never change; a head is '
    'trained on its features',
    'module': 'small layers beside the trunk, learned on another data set and '
    'frozen since',
    'single: NAME': 'trunk and one module at the strength it was trained at',
    'uniform': 'all modules, each with the weight 1 / N',
    'recommended': 'weights of the modules for each layer and branch, started '
    'where modules help on held-out training images; zero if none does',
    CONFIGURED: "the config's own fusion, which does not start from "
    'scores',
    FULL: 'all weights of the trunk learn: a model of its own '
    'for this task',
}


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of a fused downstream task')
    parser.add_argument(
        '--seeds',
        type=int,
        nargs='+',
        default=[0, 1, 2],
        help='seeds of head, data order and augmentation (default: 0 1 2)')
    parser.add_argument(
        '--best',
        type=int,
        metavar='N',
        help='of single modules, run only the N that `zoo.py rank` puts first '
        '(default: all)')
    parser.add_argument(
        '--full',
        action='store_true',
        help='fine-tune the whole trunk, too, which costs most')
    parser.add_argument(
        '--zoo', help='directory of the zoo (default: that of the config)')
    parser.add_argument(
        '--metric',
        help="key of the evaluator's results, the larger the better "
        '(default: accuracy, AP or mIoU)')
    parser.add_argument(
        '--work-dir',
        type=Path,
        help='folder for runs and report (default: '
        'work_dirs/compare/NAME_OF_CONFIG)')
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.best is not None and args.best < 1:
        parser.error('--best takes a number of modules, 1 or more')
    if min(args.seeds) < 0:
        parser.error('--seeds takes whole numbers, 0 or more')
    args.seeds = list(dict.fromkeys(args.seeds))
    if args.work_dir is None:
        args.work_dir = Path('work_dirs/compare') / Path(args.config).stem
    return args


def build_config(args: argparse.Namespace) -> Config:
    """The config, once its data and its zoo have been found."""
    cfg = read_config(args.config, args.cfg_options)
    fusing_config(cfg)
    if args.zoo is not None:
        cfg.model.backbone.zoo = args.zoo
    zoo = Zoo(cfg.model.backbone.zoo)
    for name in cfg.model.backbone.modules:
        zoo.card(name)
    judged = 'test' if cfg.get('test_dataloader') else 'val'
    check_data(cfg, ('train_dataloader', f'{judged}_dataloader'))
    return cfg


def show_bad(zoo: str, console: Console) -> None:
    """A line for each module of a zoo that cannot be used, the first ones."""
    bad: Dict[str, str] = {}
    Zoo(zoo).cards(bad)
    for line in first_lines(f'Not valid: {name}: {visible(problem)}'
                            for name, problem in bad.items()):
        console.print(line, markup=False, highlight=False)


def terms_of(comparison: Comparison) -> Dict[str, str]:
    """The words of this comparison, without methods that are not in it."""
    left_out = {CONFIGURED, FULL} - {run.method for run in comparison.runs}
    return {k: text for k, text in TERMS.items() if k not in left_out}


def show_table(step: Step, console: Console) -> None:
    """Print what the report shows, and what to use."""
    table = Table(title=step.title)
    table.add_column('method')
    for column in (step.rows[0].metric, 'over the frozen trunk', 'seeds',
                   'seconds', 'MB'):
        table.add_column(column, justify='right')
    methods = by_method(step.rows)
    base = methods.get(step.contrast.against, {})
    for method, values in methods.items():
        own = [row for row in step.rows if row.method == method]
        over = gain(values, base) if values is not base else None
        table.add_row(method, spread(list(values.values())),
                      '' if over is None else str(over), str(len(own)),
                      f'{sum(row.seconds for row in own) / len(own):.0f}',
                      f'{max(row.peak_mb for row in own):.0f}')
    console.print(table)
    for claim in claims(step.rows, step.contrast):
        note = f' {ONE_SEED}' if claim.gain.seeds == 1 else ''
        console.print(claim.verdict + note, markup=False)


def main() -> None:
    args = parse_args()
    cfg, console, root = build_config(args), table_console(), args.work_dir
    show_bad(cfg.model.backbone.zoo, console)
    singles = None
    if args.best is not None:
        singles = best_modules(cfg, args.best, root, console)
        console.print(f'Best by rank: {", ".join(singles)}', markup=False)
    comparison = Comparison(cfg, root, args.seeds, singles, args.full,
                            args.metric)
    name, broken = Path(args.config).stem, []
    page = Page(
        f'Do modules help {name}?',
        f'Seeds: {", ".join(map(str, args.seeds))}. Bold: the best row of the '
        'table.', terms_of(comparison), ['compare.md', 'fusion.md'])
    for index, run in enumerate(comparison.runs, 1):
        finished, start = run.result() is not None, time.perf_counter()
        console.print(f'{index}/{len(comparison.runs)} {run.name}: '
                      f'{"reused" if finished else "running"}')
        if not finished:
            try:
                run_logged(run.name, run, run.folder / 'log.txt', console,
                           LIBRARIES)
            except RunError as error:
                broken.append(run.name)
                print(error, file=sys.stderr)
                continue
            seconds = time.perf_counter() - start
            console.print(f'   {seconds:.0f} s', style='dim')
        step = comparison.step(name)
        write_report(root, page, [step])
    if len(broken) < len(comparison.runs):
        show_table(step, console)
        console.print(f'See {root}/report.html and report.json.')
    if broken:
        sys.exit(f'{len(broken)} of {len(comparison.runs)} runs broke, and '
                 f'are left out: {"; ".join(broken)}. The same command runs '
                 'them again.')


if __name__ == '__main__':
    run_cli(main)
