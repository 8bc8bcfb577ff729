# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Count parameters and multiply-adds of a mixture of experts, adapted or not:
``python tools/analysis_tools/count_moe.py CONFIG_OR_FILE``."""

# Comes first: it makes `_base_ = 'vim_mm::…'` and `'mmseg::…'` resolve.
import vim_mm  # noqa: F401,I001 isort:skip

import argparse
import contextlib
import json
import sys
from dataclasses import asdict
from typing import Any, Dict, List, Optional, Tuple

from mmengine.registry import init_default_scope
from rich.table import Table
from torch import nn

from vim_mm.models import build_model
from vim_mm.models.moe import load_moe
from vim_mm.models.moe.counting import Cost, count_moe, count_rest
from vim_mm.models.moe.load_moe import adapt
from vim_mm.utils.cli import add_experts_per_token, run_cli, table_console
from vim_mm.utils.config import add_cfg_options, read_config, type_name

OPTIONS = ('task', 'like', 'train', 'k', 'threshold')


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Count trained, stored and active parameters and '
        'multiply-adds of a trunk with experts. Options adapt it as '
        'vim_mm.load_moe does.')
    parser.add_argument(
        'source', help='config of a model, or a moe file (.safetensors)')
    parser.add_argument('--task', help='task that runs and learns')
    parser.add_argument('--like', help='task that a new one starts as')
    parser.add_argument(
        '--train', nargs='+', help="'all', or of routers, experts, shared")
    parser.add_argument(
        '--experts', type=int, help='how many experts per layer learn')
    parser.add_argument(
        '--select',
        default='new',
        help='which: new, most or least used (default: new)')
    add_experts_per_token(parser)
    parser.add_argument(
        '--threshold', type=float, help='drop experts that are used less')
    parser.add_argument(
        '--size',
        type=int,
        default=224,
        help='side of the image in pixels (default: 224)')
    parser.add_argument('--json', action='store_true', help='print JSON')
    add_cfg_options(parser)
    return parser.parse_args(argv)


def adaptation(args: argparse.Namespace) -> Dict[str, Any]:
    """The arguments of ``load_moe`` that are given."""
    given = {
        name: getattr(args, name)
        for name in OPTIONS if getattr(args, name) is not None
    }
    if given.get('train') == ['all']:
        given['train'] = 'all'
    if args.experts is not None:
        given['experts'] = dict(num=args.experts, select=args.select)
    return given


def build(args: argparse.Namespace) -> Tuple[nn.Module, Optional[Cost]]:
    """The trunk, and what the rest of a whole model costs."""
    given = adaptation(args)
    if args.source.endswith('.safetensors'):
        return load_moe(args.source, **given), None
    cfg = read_config(args.source, args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    backbone = (cfg.get('model') or {}).get('backbone')
    if backbone is None:
        raise ValueError(f'{args.source} has no `model.backbone` to count.')
    if type_name(backbone) == 'load_moe':
        backbone.update(given)
        given = {}
    model = build_model(cfg)
    if given:
        adapt(model.backbone, {}, **given)
    return model.backbone, count_rest(model, model.backbone)


def main(argv: Optional[List[str]] = None) -> None:
    args = parse_args(argv)
    # output of libraries is no part of the answer
    with contextlib.redirect_stdout(sys.stderr):
        trunk, rest = build(args)
        costs = count_moe(trunk, args.size)
    if rest is not None:
        total = costs.pop('total')
        costs.update({'neck and heads': rest, 'total': total + rest})
    if args.json:
        print(json.dumps({n: asdict(c) for n, c in costs.items()}, indent=2))
        return
    table = Table('part', title=f'{args.source}, {args.size} px')
    for heading in ('trained', 'stored', 'active', 'MACs'):
        table.add_column(heading, justify='right')
    for name, cost in costs.items():
        macs = '-' if name == 'neck and heads' else f'{cost.macs:,}'
        table.add_row(name, f'{cost.trained:,}', f'{cost.stored:,}',
                      f'{cost.active:,}', macs)
    table_console().print(table)


if __name__ == '__main__':
    run_cli(main)
