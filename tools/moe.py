# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Write, look at and extend files of mixture-of-experts trunks."""

# Comes first: it makes `_base_ = 'vim_mm::…'` and `'mmseg::…'` resolve.
import vim_mm  # noqa: F401,I001 isort:skip

import argparse
from dataclasses import asdict
from typing import Any, List, Optional

from mmengine.registry import init_default_scope
from rich.markup import escape
from rich.table import Table

from vim_mm.models.moe import MoEFile, add_task, load_moe, read_moe, save_moe
from vim_mm.utils.cli import (add_experts_per_token, print_json, run_cli,
                              table_console, visible)
from vim_mm.utils.config import add_cfg_options, read_config


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    sub = command(
        'extract', extract, 'Write the trunk of a trained model, or '
        'what some tasks need of it, as a moe file.')
    sub.add_argument('config', help='config that the model was trained with')
    sub.add_argument('checkpoint', help='what its training left')
    sub.add_argument('--out', required=True, help='the .safetensors to write')
    sub.add_argument(
        '--tasks', nargs='+', help='the tasks to keep (default: all)')
    sub.add_argument(
        '--threshold',
        type=float,
        help='drop experts that these tasks use in less than threshold / k '
        'percent of cases; the paper takes 3 (default: keep them)')
    add_experts_per_token(sub)
    sub.add_argument(
        '--batches',
        type=int,
        help='training batches to count on how often experts run (default: '
        'what training has counted, else 50)')
    add_cfg_options(sub)

    sub = command('status', status, 'Show what a moe file holds.')
    sub.add_argument('file', help='a moe file')
    sub.add_argument('--json', action='store_true', help='print JSON')

    sub = command(
        'add-task', extend, 'Give a moe file routers of a new task '
        'that starts as another one, or afresh.')
    sub.add_argument('file', help='a moe file')
    sub.add_argument('--task', required=True, help='name of the new task')
    sub.add_argument('--out', required=True, help='the .safetensors to write')
    sub.add_argument('--like', help='the task that it starts as')
    sub.add_argument(
        '--num-experts',
        type=int,
        default=0,
        help='new experts per layer that it alone knows (default: 0)')
    return parser.parse_args(argv)


def extract(args: argparse.Namespace) -> None:
    # data sets take seconds to import: not for looking at a file
    from vim_mm.apis.experts import extract_moe
    cfg = read_config(args.config, args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    extract_moe(cfg, args.checkpoint, args.out, args.tasks, args.threshold,
                args.k, args.batches)
    print_status(read_moe(args.out))


def status(args: argparse.Namespace) -> None:
    file = read_moe(args.file)
    if not args.json:
        print_status(file)
        return
    layers = {name: asdict(layer) for name, layer in file.layers.items()}
    usage = {
        name: {
            task: counts.tolist()
            for task, counts in tasks.items()
        }
        for name, tasks in file.usage.items()
    }
    print_json(
        dict(
            backbone=file.backbone,
            tasks=file.tasks,
            num_params=file.num_params,
            layers=layers,
            usage=usage,
            card=file.card))


def print_status(file: MoEFile) -> None:
    title = (f'{file.path}: {file.backbone["type"]}, {file.num_params:,} '
             'parameters')
    table = Table('layer', 'experts', 'groups', 'k', 'routers', title=title)
    for name, layer in file.layers.items():
        routers = ', '.join(f'{task}: {layer.structure.routers[task]}'
                            for task in layer.tasks)
        groups = ' + '.join(map(str, layer.structure.groups))
        cells = (name, layer.structure.num_experts, groups, layer.k, routers)
        table.add_row(*(escape(visible(cell)) for cell in cells))
    table_console().print(table)
    for key in ('dataset', 'licence'):
        if file.card.get(key):
            print(f'{key.capitalize()}: {visible(file.card[key])}.')
    known = [
        task for task in file.tasks if all(
            task in file.usage.get(name, {}) for name in file.layers)
    ]
    print('How often experts run is known for: '
          f'{", ".join(known) or "no task"}.')


def extend(args: argparse.Namespace) -> None:
    trunk, file = load_moe(args.file), read_moe(args.file)
    add_task(trunk, args.task, args.num_experts, args.like,
             file.usage)
    save_moe(trunk, file.backbone, args.out, file.usage, file.card)
    print_status(read_moe(args.out))


def main(argv: Optional[List[str]] = None) -> None:
    args = parse_args(argv)
    args.run(args)


if __name__ == '__main__':
    run_cli(main)
