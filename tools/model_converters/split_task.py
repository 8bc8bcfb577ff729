# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Take one task out of a multi-task run, as an ordinary model.

    python tools/model_converters/split_task.py configs/mtht/CONFIG.py \\
        work_dirs/CONFIG/iter_240000.pth det detector/
    python tools/test.py detector/det.py detector/det.pth
"""

# Comes first: it makes `_base_ = 'vim_mm::…'` and `'mmseg::…'` resolve.
import vim_mm  # noqa: F401,I001 isort:skip

import argparse

from vim_mm.apis.split import save_task
from vim_mm.utils.cli import run_cli
from vim_mm.utils.config import add_cfg_options, read_config


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Take one task out of a multi-task run, as an ordinary '
        'model')
    parser.add_argument('config', help='config of several tasks')
    parser.add_argument('checkpoint', help='.pth or .safetensors file')
    parser.add_argument('task', help='name of the task')
    parser.add_argument('folder', help='folder to make')
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    """Write what the command line names."""
    args = parse_args()
    cfg = read_config(args.config, args.cfg_options)
    for path in save_task(cfg, args.checkpoint, args.task, args.folder):
        print(path)


if __name__ == '__main__':
    run_cli(main)
