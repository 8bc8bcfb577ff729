# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Train a model: ``python tools/train.py CONFIG [options]``."""

# Comes first: it makes `_base_ = 'vim_mm::…'` and `'mmseg::…'` resolve.
import vim_mm  # noqa: F401,I001 isort:skip

import argparse
import os
import os.path as osp

from mmengine.config import Config

from vim_mm.engine.runner import TRAINING, build_runner
from vim_mm.utils.cli import run_cli
from vim_mm.utils.config import add_cfg_options, read_config, type_name


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a model')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir', help='folder for logs and checkpoints '
        '(default: work_dir of the config, else work_dirs/CONFIG_NAME)')
    parser.add_argument(
        '--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate to the actual batch size')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='continue from this checkpoint, or without a value from the '
        'latest one in the work dir')
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes')
    # passed by torch.distributed.launch
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def build_config(args: argparse.Namespace) -> Config:
    """The config with everything the command line says merged in.

    Raises:
        FileNotFoundError: The config, or a checkpoint to resume from, does
            not exist.
        ValueError: An option does not fit the config.
    """
    cfg = read_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        name = osp.splitext(osp.basename(args.config))[0]
        cfg.work_dir = osp.join('work_dirs', name)
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError(
                '--auto-scale-lr needs auto_scale_lr = dict(base_batch_size='
                f'N) in {args.config}: add it, or leave the option out.')
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        set_resume(cfg, args.resume)
    return cfg


def use_amp(cfg: Config) -> None:
    """Switch the optimizer wrapper to mixed precision."""
    if not cfg.get('optim_wrapper'):
        raise ValueError('--amp changes the `optim_wrapper`, and this config '
                         'has none: leave --amp out.')
    kind = type_name({'type': 'OptimWrapper', **cfg.optim_wrapper})
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(
            f'--amp turns an OptimWrapper into an AmpOptimWrapper, but this '
            f'config uses {kind}: leave --amp out.')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def set_resume(cfg: Config, resume: str) -> None:
    """Continue from a checkpoint file, or from the latest if ``'auto'``.

    Raises:
        FileNotFoundError: There is no such file.
    """
    cfg.resume = True
    if resume != 'auto':
        if '://' not in resume and not osp.exists(resume):
            raise FileNotFoundError(
                f'There is no checkpoint file {resume} to resume from: check '
                'the path.')
        cfg.load_from = resume
        return
    # and without a checkpoint the run starts from its `load_from`
    cfg.resume = 'auto'


def main() -> None:
    args = parse_args()
    cfg = build_config(args)
    build_runner(cfg, TRAINING).train()


if __name__ == '__main__':
    run_cli(main)
