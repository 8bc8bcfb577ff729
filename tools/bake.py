# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Fold a fusion into one module: ``python tools/bake.py CONFIG CHECKPOINT``.
"""

# Comes first: it makes `_base_ = 'vim_mm::…'` and `'mmseg::…'` resolve.
import vim_mm  # noqa: F401,I001 isort:skip

import argparse
from pathlib import Path
from typing import List, Optional

from mmengine.registry import init_default_scope

from vim_mm.apis.bake import TOLERANCE, bake
from vim_mm.apis.serving import load_model
from vim_mm.models.multitask.single_task import config_tasks, task_config
from vim_mm.utils.cli import run_cli
from vim_mm.utils.config import add_cfg_options, read_config
from vim_mm.utils.described import card_fields


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Fold a finished fusion into one plain module of a zoo, '
        'and check that it computes the same. Fields of its card come from '
        "the config's top-level dict module_card.")
    parser.add_argument('config', help='config of the fused model')
    parser.add_argument('checkpoint', help='what its training left')
    parser.add_argument('--zoo', required=True, help='zoo to write into')
    parser.add_argument('--name', required=True, help='name of the module')
    parser.add_argument(
        '--task',
        help='task of the model or of its fusion (default: the one that runs)')
    parser.add_argument(
        '--threshold',
        type=float,
        default=0.01,
        help='in each slot, drop modules of smaller weight (default: 0.01)')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace a module')
    add_cfg_options(parser)
    return parser.parse_args(argv)


def main(argv: Optional[List[str]] = None) -> None:
    args = parse_args(argv)
    cfg = read_config(args.config, args.cfg_options)
    if args.task in config_tasks(cfg):
        cfg = task_config(cfg, args.task)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model, meta = load_model(cfg, args.checkpoint)
    card = card_fields(cfg)
    card.setdefault('classes', list(meta.get('classes') or []))
    card['training'] = dict(
        card.get('training', {}), config=Path(args.config).name)
    baked = bake(
        model,
        args.name,
        args.zoo,
        task=args.task,
        threshold=args.threshold,
        size=cfg.model.backbone.get('probe_size', 224),
        overwrite=args.overwrite,
        card=card)
    num_kept, num_dropped = (sum(map(len, weights.values()))
                             for weights in (baked.kept, baked.dropped))
    limit = f', of {TOLERANCE:.0e} allowed' if not num_dropped else ''
    print(f'Saved {args.name} ({baked.card.num_params:,} parameters) to '
          f'{args.zoo}: {num_kept} adapters folded, {num_dropped} dropped.\n'
          'Outputs on random images differ by at most '
          f'{baked.difference:.1e} of the largest{limit}.\n'
          f'Licence, of all its parts: {baked.card.licence}.\n'
          f"Run it with model.backbone.zoo='{args.zoo}', "
          f"modules=['{args.name}'] and fusion=None, and {args.checkpoint} "
          'for neck and head.')


if __name__ == '__main__':
    run_cli(main)
