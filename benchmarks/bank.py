# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What K modules cost beside one trunk: the wide bank against the loop.

    python benchmarks/bank.py [--device cuda] [--amp] [--train] [--json FILE]

Random weights; a trunk of ViT-B/16 size at 224 px and ConvPass of h = 8 by
default. Medians over repeats. The loop is :meth:`BaseAdapter.wide`, which runs
one adapter after the other.
"""

import vim_mm  # noqa: F401,I001 isort:skip

import argparse
import json
import platform
import statistics
import time
from contextlib import contextmanager
from typing import Callable, Dict, Iterator, List

import torch
from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table

from vim_mm.models.adapters import BaseAdapter, ConvPass
from vim_mm.registry import MODELS


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Time the wide bank')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--arch', default='base', help='of VisionTransformer')
    parser.add_argument('--size', type=int, default=224, help='in pixels')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--modules', type=int, nargs='+',
                        default=[1, 2, 4, 8, 16])
    parser.add_argument('--repeats', type=int, default=20)
    parser.add_argument('--amp', action='store_true', help='bf16 autocast')
    parser.add_argument(
        '--train', action='store_true', help='gates learn: with backward')
    parser.add_argument('--json', help='also write the figures to a file')
    return parser.parse_args()


def build(args: argparse.Namespace, num: int) -> torch.nn.Module:
    """A backbone whose fusion weighs ``num`` filled, frozen modules."""
    backbone = MODELS.build(
        dict(
            type='ViMBackbone',
            trunk=dict(
                type='mmpretrain.VisionTransformer',
                arch=args.arch,
                img_size=args.size,
                patch_size=16)))
    dims = {name: spec.dims for name, spec in backbone.slots.items()}
    names = [f'm{i}' for i in range(num)]
    for name in names:
        backbone.bank.add(name, dict(type='ConvPass'), dims, trainable=False)
        for param in backbone.bank.members[name].parameters():
            torch.nn.init.normal_(param, std=.02)
    backbone.set_fusion(dict(type='EnsMoE'))
    return backbone.to(args.device).train(args.train)


@contextmanager
def loop_instead_of_wide() -> Iterator[None]:
    """Within this context the bank runs one adapter after the other."""
    wide = ConvPass.__dict__['wide']
    ConvPass.wide = BaseAdapter.__dict__['wide']
    try:
        yield
    finally:
        ConvPass.wide = wide


def median_ms(run: Callable[[], None], args: argparse.Namespace) -> float:
    """Median wall time of a pass, in milliseconds."""
    times: List[float] = []
    for index in range(args.repeats + 3):
        synchronize(args.device)
        start = time.perf_counter()
        run()
        synchronize(args.device)
        if index >= 3:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def synchronize(device: str) -> None:
    """Wait for what the device still has to do."""
    if device.startswith('cuda'):
        torch.cuda.synchronize()


def measure(backbone: torch.nn.Module, x: torch.Tensor,
            args: argparse.Namespace) -> Dict[str, float]:
    """Times of the bare trunk, the wide bank and the loop."""

    def run() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=args.amp):
            with torch.set_grad_enabled(args.train):
                out = backbone(x)[-1]
        if args.train and out.requires_grad:
            out.float().square().mean().backward()

    with backbone.only():
        trunk = median_ms(run, args)
    wide = median_ms(run, args)
    with loop_instead_of_wide():
        loop = median_ms(run, args)
    return dict(trunk_ms=trunk, wide_ms=wide, loop_ms=loop)


def main() -> None:
    args = parse_args()
    MMLogger.get_current_instance().setLevel('ERROR')
    x = torch.randn(args.batch, 3, args.size, args.size, device=args.device)
    device = platform.processor() or platform.machine()
    if args.device.startswith('cuda'):
        device = torch.cuda.get_device_name()
    rows = []
    for num in args.modules:
        row = measure(build(args, num), x, args)
        rows.append(dict(modules=num, **{k: round(v, 3)
                                         for k, v in row.items()}))
    settings = dict(vars(args), device_name=device, torch=torch.__version__)
    title = (f'{args.arch}, {args.size} px, batch {args.batch}, {device}, '
             f'{"bf16" if args.amp else "fp32"}, '
             f'{"training" if args.train else "inference"}')
    table = Table(title=title)
    for name in ('K', 'trunk ms', 'wide ms', 'loop ms', 'wide / trunk',
                 'loop / trunk'):
        table.add_column(name, justify='right')
    for row in rows:
        trunk, wide, loop = (row[k]
                             for k in ('trunk_ms', 'wide_ms', 'loop_ms'))
        table.add_row(
            str(row['modules']), f'{trunk:.1f}', f'{wide:.1f}', f'{loop:.1f}',
            f'{wide / trunk:.3f}', f'{loop / trunk:.3f}')
    Console(width=90).print(table)
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(dict(settings=settings, rows=rows), file, indent=1)


if __name__ == '__main__':
    main()
