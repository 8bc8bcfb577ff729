# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Make, check and apply OTA's upstream releases.

    python tools/release.py publish CONFIG --out FOLDER
    python tools/release.py check FOLDER
    python tools/release.py apply FOLDER IMAGES --out COPIES
"""

# Comes first: it makes `_base_ = 'vim_mm::…'` and `'mmseg::…'` resolve.
import vim_mm  # noqa: F401,I001 isort:skip

import argparse
import os.path as osp
from typing import Any, List, Optional

from vim_mm.utils.cli import print_json, run_cli
from vim_mm.utils.config import add_cfg_options, read_config


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    sub = command(
        'publish', publish, 'Train an auto-encoder with a codebook on '
        'unlabelled upstream images and publish it with a leak report.')
    sub.add_argument('config', help='such as configs/ota/release_coco_64px.py')
    sub.add_argument('--out', required=True, help='the folder to make')
    sub.add_argument(
        '--data', help="folder of upstream images, in place of the config's")
    sub.add_argument(
        '--held-out',
        help='folder of other images of the same source, for the leak report')
    sub.add_argument(
        '--checkpoint', help='publish this training instead of a new one')
    sub.add_argument(
        '--max-images',
        type=int,
        default=2000,
        help='images of either kind in the leak report (default: 2000)')
    sub.add_argument(
        '--work-dir', help='folder for logs and checkpoints (default: '
        'work_dirs/CONFIG_NAME)')
    add_cfg_options(sub)

    sub = command('check', check, 'Check a release and print its card.')
    sub.add_argument('folder', help='a release')

    sub = command('apply', apply, 'Write re-represented copies of a folder '
                  'of images; names and sizes stay, so annotations fit.')
    sub.add_argument('folder', help='a release')
    sub.add_argument('images', help='the folder of images')
    sub.add_argument('--out', required=True, help='the folder to make')
    sub.add_argument(
        '--device', default='cpu', help='such as cuda:0 (default: cpu)')
    sub.add_argument(
        '--scale',
        type=float,
        default=1.,
        help='enlarge images in between, which keeps more detail (default: 1)')
    return parser.parse_args(argv)


def publish(args: argparse.Namespace) -> None:
    # mm* libraries take seconds to import: not for looking at a folder
    from vim_mm.apis.release import publish_upstream
    options = dict(args.cfg_options or {})
    for part, folder in (('train', args.data), ('held_out', args.held_out)):
        if folder is not None:
            options.update({
                f'{part}_dataloader.dataset.data_root': folder,
                f'{part}_dataloader.dataset.data_prefix': ''
            })
    if (args.data is None) != (args.held_out is None):
        raise ValueError('--data and --held-out belong together: images of '
                         'another source would not tell what is leaked.')
    cfg = read_config(args.config, options)
    name = osp.splitext(osp.basename(args.config))[0]
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or osp.join(
        'work_dirs', name)
    card = publish_upstream(cfg, args.out, args.checkpoint, args.max_images)
    print_json(card.to_dict())
    print(f'Published {args.out}.')


def check(args: argparse.Namespace) -> None:
    from vim_mm.models.generators import (load_upstream_release,
                                          read_upstream_card)
    card = read_upstream_card(args.folder)
    load_upstream_release(args.folder, card)
    print_json(card.to_dict())
    print(f'{args.folder} is whole.')


def apply(args: argparse.Namespace) -> None:
    from vim_mm.apis.release import re_represent_folder
    num = re_represent_folder(args.folder, args.images, args.out, args.device,
                              args.scale)
    print(f'Wrote {num} re-represented images to {args.out}.')


def main(argv: Optional[List[str]] = None) -> None:
    args = parse_args(argv)
    args.run(args)


if __name__ == '__main__':
    run_cli(main)
