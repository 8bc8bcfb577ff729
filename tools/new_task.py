# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Write the config of a task on one's own data.

    vim-mm new-task --coco train.json val.json --trunk dinov3_vit-s16
    vim-mm new-task --folder photos --trunk clip_vit-b16 --shots 10
    vim-mm new-task --images img --labels maps --classes classes.txt \\
        --trunk my_trunk.py --minutes 30
"""

# Comes first: it makes `_base_ = 'vim_mm::…'` and `'mmseg::…'` resolve.
import vim_mm  # noqa: F401,I001 isort:skip

import argparse
from typing import List, Optional

from vim_mm.apis.new_task import in_words, known_trunks, new_task, read_data
from vim_mm.utils.cli import run_cli


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Check one's own data and write a short config that "
        'trains a module on it; docs/new_task.md walks through it.',
        epilog=f'Trunks by name: {", ".join(known_trunks())}.')
    data = parser.add_argument_group('data, in one of three ways')
    data.add_argument(
        '--coco',
        nargs='+',
        default=[],
        metavar='JSON',
        help='boxes: a json to learn from and one to judge by, or one that '
        'is split')
    data.add_argument(
        '--folder',
        metavar='DIR',
        help='a folder of classes, or of train and val that hold them')
    data.add_argument(
        '--images',
        nargs='+',
        default=[],
        metavar='DIR',
        help='folder of the images of --labels (train and val in it, or not) '
        'or of --coco (one for each json, if they differ)')
    data.add_argument(
        '--labels', metavar='DIR', help='folder of label maps, as --images')
    data.add_argument(
        '--classes',
        nargs='+',
        default=[],
        metavar='NAME',
        help='classes of label maps from 0 on, or a txt or json file')
    parser.add_argument(
        '--trunk', required=True, help='name, or a config with a `trunk`')
    parser.add_argument(
        '--out', default='task.py', help='config to write (default: task.py)')
    parser.add_argument(
        '--name', help='name of the module (default: that of --out)')
    parser.add_argument(
        '--minutes',
        type=float,
        default=10.,
        help='how long the training may take (default: 10)')
    parser.add_argument(
        '--images-per-second',
        type=float,
        metavar='N',
        help='pace in training of the machine that will train (default: '
        'measured here)')
    parser.add_argument(
        '--size',
        type=int,
        help='longest side of images in pixels (default: by the data)')
    few = parser.add_mutually_exclusive_group()
    few.add_argument(
        '--shots', type=int, help='learn from so many images of each class')
    few.add_argument(
        '--indices', type=int, help='learn from the first images alone')
    parser.add_argument('--licence', help='licence of the module')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace the config')
    return parser.parse_args(argv)


def main(argv: Optional[List[str]] = None) -> None:
    args = parse_args(argv)
    data = read_data(args.coco, args.folder, args.images, args.labels,
                     args.classes)
    task = new_task(data, args.trunk, args.out, args.name, args.minutes,
                    args.size, args.shots, args.indices, args.licence,
                    args.images_per_second, args.overwrite)
    print(f'{len(data.classes)} classes, {task.plan.num_train} images to '
          f'learn from, {data.val.num} to judge by.')
    for note in task.notes:
        print(f'Note: {note}')
    print(f'Wrote {task.config}: {task.plan.max_iters} iterations of '
          f'{task.plan.batch_size} images, about '
          f'{in_words(task.plan.minutes)} (pace {task.pace}).\nNext:')
    for command in task.commands:
        print(f'  {command}')


if __name__ == '__main__':
    run_cli(main)
