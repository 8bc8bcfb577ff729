# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What K modules cost beside one trunk, for a range of K.

    python benchmarks/bank.py [--device cuda] [--batch 32] [--amp] \\
        [--train] [--compile] [--graph] [--json FILE]

ViT-B/16 at 224 px with random weights and ConvPass of h = 8. All columns of a
row take turns; they are medians in milliseconds. *Bank* is what users get,
*loop* runs one adapter after the other. With ``--compile`` and ``--graph``
(CUDA graphs) bank and trunk are compiled too.
"""

import vim_mm  # noqa: F401,I001 isort:skip

import argparse
import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import torch
import vit_models
from bench_bank import bare, compiled, forward, learning_steps
from harness import Settings, take_turns
from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table

from vim_mm.utils.files import write_atomic


def parse_args(args: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Time the bank over K')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument(
        '--modules', type=int, nargs='+', default=[1, 2, 4, 8, 16])
    parser.add_argument('--repeats', type=int, default=20)
    parser.add_argument('--amp', action='store_true', help='bf16 autocast')
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        '--train',
        action='store_true',
        help='gates learn: forward and backward, of the trunk to its input')
    way.add_argument('--compile', action='store_true')
    way.add_argument('--graph', action='store_true', help='with CUDA graphs')
    parser.add_argument(
        '--quick', action='store_true', help='a tiny trunk, no figures')
    parser.add_argument('--json', help='also write the figures to a file')
    return parser.parse_args(args)


def runs_of(num: int, x: torch.Tensor,
            args: argparse.Namespace) -> Dict[str, Callable[[], Any]]:
    """What takes turns for one K."""
    settings = Settings(args.device, args.quick)
    models = {
        name:
        vit_models.bank(settings, num, adapter=adapter, learn=args.train)
        for name, adapter in dict(bank=None, loop=dict(
            type='LonelyConvPass')).items()
    }
    if args.train:
        steps = {n: learning_steps(m, x, args.amp) for n, m in models.items()}
        return dict(
            trunk=steps['bank']['trunk'],
            **{
                name: each['ours']
                for name, each in steps.items()
            })
    runs = {name: forward(m, x, args.amp) for name, m in models.items()}
    runs = dict(trunk=bare(models['bank'], runs['bank']), **runs)
    if args.compile or args.graph:
        both = compiled(models['bank'], vit_models.trunk(settings), x,
                        args.amp,
                        'reduce-overhead' if args.graph else 'default')
        how = 'graph' if args.graph else 'compiled'
        runs.update({
            f'{how} trunk': both['trunk'],
            f'{how} bank': both['ours']
        })
    return runs


def table(rows: List[dict], title: str) -> Table:
    """Milliseconds, and each bank against the trunk of its kind."""
    shown = Table(title=title)
    names = [name for name in rows[0] if name != 'modules']
    pairs = [(name, name.replace('bank', 'trunk').replace('loop', 'trunk'))
             for name in names if 'trunk' not in name]
    for name in ('K', *(f'{n} ms' for n in names), *(f'{a} / {b}'
                                                     for a, b in pairs)):
        shown.add_column(name, justify='right')
    for row in rows:
        shown.add_row(
            str(row['modules']), *(f'{row[name]:.1f}' for name in names),
            *(f'{row[a] / row[b]:.3f}' for a, b in pairs))
    return shown


def main(args: Optional[Sequence[str]] = None) -> None:
    args = parse_args(args)
    MMLogger.get_current_instance().setLevel('ERROR')
    settings = Settings(args.device, args.quick)
    x = settings.images(args.batch)
    rows = []
    for num in args.modules:
        runs = runs_of(num, x, args)
        times = take_turns(runs, args.repeats, args.device)
        rows.append(
            dict(
                modules=num,
                **{n: round(1e3 * times.median(n), 3)
                   for n in runs}))
    title = (f'{settings.size} px, batch {args.batch}, {args.device}, '
             f'{"bf16" if args.amp else "fp32"}, '
             f'{"gates learn" if args.train else "inference"}')
    Console(width=130).print(table(rows, title))
    if args.json:
        settings = dict(vars(args), torch=torch.__version__)
        report = dict(settings=settings, rows=rows)
        write_atomic(Path(args.json), json.dumps(report, indent=1))


if __name__ == '__main__':
    main()
