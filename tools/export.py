# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Write ONNX: ``python tools/export.py CONFIG CHECKPOINT OUT.onnx``."""

# Comes first: it makes `_base_ = 'vim_mm::…'` and `'mmseg::…'` resolve.
import vim_mm  # noqa: F401,I001 isort:skip

import argparse
from typing import List, Optional

from vim_mm.apis.export import export_model, latency, load_for_export
from vim_mm.utils.cli import run_cli
from vim_mm.utils.config import add_cfg_options, read_config


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Write a trained classifier, segmentor or single-stage '
        'detector as one ONNX file, once it has computed the same as PyTorch '
        'at two image sizes and two batch sizes. Class names, normalisation '
        'and the test pipeline are in its metadata.')
    parser.add_argument('config', help='config of the model')
    parser.add_argument('checkpoint', help='what its training left')
    parser.add_argument('out', help='.onnx file to write')
    parser.add_argument('--task', help='task of a model or fusion of several')
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help='usual size of inputs (default: what the test pipeline gives)')
    parser.add_argument(
        '--boxes',
        action='store_true',
        help="let a detector's graph end in boxes instead of raw maps")
    add_cfg_options(parser)
    return parser.parse_args(argv)


def main(argv: Optional[List[str]] = None) -> None:
    args = parse_args(argv)
    cfg = read_config(args.config, args.cfg_options)
    model, cfg, meta = load_for_export(cfg, args.checkpoint, args.task)
    done = export_model(model, cfg, args.out, meta, args.size, args.boxes)
    print(f'Saved {done.file}: {done.megabytes:.1f} MB, opset {done.opset}, '
          f'outputs {", ".join(done.outputs)}.')
    for shape, difference in done.differences.items():
        what = ('other boxes' if args.boxes else 'of the largest output')
        print(f'  images of {shape}: differs from PyTorch by '
              f'{difference:.1e} {what}')
    if not done.any_size:
        print('  It reads images of this size alone, as the model has sizes '
              'fixed in it.')
    times = latency(model, done.file)
    print(f'  one image: {times["onnx"]:.1f} ms, in PyTorch '
          f'{times["torch"]:.1f} ms')


if __name__ == '__main__':
    run_cli(main)
