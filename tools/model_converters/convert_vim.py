# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Convert ViM's released checkpoint to a trunk, a zoo and runnable tasks.

    python tools/model_converters/convert_vim.py pytorch_model.pt \\
        work_dirs/vim_release
    python tools/test.py work_dirs/vim_release/seg-voc.py \\
        work_dirs/vim_release/seg-voc.pth
"""

import argparse
from pathlib import Path

import vim_mm  # noqa: F401
from vim_mm.interchange import convert_release
from vim_mm.utils.cli import run_cli

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'vim'


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Convert ViM's released checkpoint to a trunk, a zoo and "
        'one config and checkpoint a task')
    parser.add_argument('src', help='the released pytorch_model.pt')
    parser.add_argument('dst', help='folder to make')
    parser.add_argument(
        '--names',
        nargs='+',
        help="names of the modules in the file's order, which has none "
        '(default: module-0 module-1 ...)')
    parser.add_argument(
        '--tasks', nargs='+', help='tasks to convert (default: all)')
    parser.add_argument(
        '--licence', help="licence of the weights, for the modules' cards")
    parser.add_argument(
        '--trust',
        action='store_true',
        help='read SRC even if it is a pickle that can run code')
    return parser.parse_args()


def main() -> None:
    """Convert what the command line names."""
    args = parse_args()
    convert_release(
        args.src,
        args.dst,
        configs=dict(
            cls=CONFIGS / 'release_cls.py',
            seg=CONFIGS / 'release_seg-voc.py'),
        names=args.names,
        tasks=args.tasks,
        licence=args.licence,
        trust=args.trust)


if __name__ == '__main__':
    run_cli(main)
