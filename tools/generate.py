# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Generate images for a teacher from the images of a data set.

    python tools/generate.py configs/ota/generate_clothing_cls.py \\
        --teacher teacher.pth --out generated
"""

# Comes first: it makes `_base_ = 'vim_mm::…'` and `'mmseg::…'` resolve.
import vim_mm  # noqa: F401,I001 isort:skip

import argparse
from typing import List, Optional

from mmengine.device import get_device

from vim_mm.apis.generate import generate
from vim_mm.apis.inputs import check_device
from vim_mm.models.multitask.single_task import config_tasks, task_config
from vim_mm.utils.cli import run_cli
from vim_mm.utils.config import add_cfg_options, read_config


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Generate images for a teacher from downstream images, '
        "laid out as the guides' data set is, with a manifest and a contact "
        'sheet. The same command goes on after an interruption.',
        epilog='What is made is said by the dict `generate` of the config: '
        'data set of the guides, generator, copies, batch_size, seed, limit.')
    parser.add_argument('config', help="the teacher's, with `generate`")
    parser.add_argument(
        '--teacher', required=True, help='what its training left')
    parser.add_argument('--out', required=True, help='folder to write into')
    parser.add_argument(
        '--student',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='a student, for the term `agreement`')
    parser.add_argument('--task', help='task of a multi-task model')
    parser.add_argument(
        '--device', default=get_device(), help='cpu, cuda, … (default: best)')
    add_cfg_options(parser)
    return parser.parse_args(argv)


def main(argv: Optional[List[str]] = None) -> None:
    args = parse_args(argv)
    check_device(args.device)
    cfg = read_config(args.config, args.cfg_options)
    if args.task or config_tasks(cfg):
        cfg = task_config(cfg, args.task)
    report = generate(cfg, args.teacher, args.out, args.student, args.device)
    print(f'{report.total} images in {args.out}, {report.made} of them made '
          f'now, {report.seconds:.2f} s each; mean loss '
          f'{report.start:.3f} at the guides, {report.loss:.3f} now. '
          f'{args.out}/dataset.py reads them.')


if __name__ == '__main__':
    run_cli(main)
