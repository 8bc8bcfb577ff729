# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Evaluate a checkpoint: ``python tools/test.py CONFIG CHECKPOINT``."""

# Comes first: it makes `_base_ = 'vim_mm::…'` and `'mmseg::…'` resolve.
import vim_mm  # noqa: F401,I001 isort:skip

import argparse
import os
import os.path as osp
from typing import Union

from mmengine.config import Config
from mmengine.evaluator import DumpResults
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, FlexibleRunner, Runner

from vim_mm.engine.loops import MultiTaskTestLoop
from vim_mm.engine.runner import TESTING, build_runner
from vim_mm.models.multitask.single_task import config_tasks, task_config
from vim_mm.models.tasks import holders, select_task
from vim_mm.utils.arguments import arguments_of
from vim_mm.utils.cli import run_cli
from vim_mm.utils.config import (add_cfg_options, class_of, library_of,
                                 read_config, type_name)
from vim_mm.utils.kinds import KINDS

# drawing hook and visualizer of each library, for configs that name none
DRAWING = {
    kind.scope: (kind.hook, kind.visualizer['type'])
    for kind in KINDS.values()
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Evaluate a checkpoint')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='.pth or .safetensors file')
    parser.add_argument(
        '--work-dir',
        help='folder for logs and metrics '
        '(default: work_dir of the config, else work_dirs/CONFIG_NAME)')
    parser.add_argument(
        '--task',
        metavar='NAME',
        help='the task of a multi-task model to evaluate (default: all)')
    parser.add_argument(
        '--out',
        help='write predictions to this .pkl file; those of several tasks to '
        'NAME.TASK.pkl')
    parser.add_argument(
        '--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='save painted predictions here')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds per window')
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes')
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation')
    # passed by torch.distributed.launch
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def build_config(args: argparse.Namespace) -> Config:
    """The config with everything the command line says merged in.

    Raises:
        FileNotFoundError: The config or the checkpoint does not exist.
        ValueError: An option does not fit the config.
    """
    cfg = read_config(args.config, args.cfg_options)
    if '://' not in args.checkpoint and not osp.exists(args.checkpoint):
        raise FileNotFoundError(f'There is no checkpoint file '
                                f'{args.checkpoint}: check the path.')
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise ValueError(
            f'--out {args.out} must end in .pkl: predictions are dumped as a '
            'pickle.')
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        name = osp.splitext(osp.basename(args.config))[0]
        cfg.work_dir = osp.join('work_dirs', name)
    cfg.load_from = args.checkpoint
    if args.task is not None:
        cfg = task_config(cfg, args.task)
    elif config_tasks(cfg) and (args.show or args.show_dir or args.tta):
        raise ValueError('--show, --show-dir and --tta are for one task; name '
                         f'one of {config_tasks(cfg)} with --task.')
    if args.show or args.show_dir:
        draw_predictions(cfg, args)
    if args.tta:
        use_tta(cfg)
    return cfg


def draw_predictions(cfg: Config, args: argparse.Namespace) -> None:
    """Add or switch on the drawing hook of the library the model is from."""
    hooks = cfg.setdefault('default_hooks', {})
    if not hooks.get('visualization') or cfg.get('visualizer') is None:
        scope = library_of(cfg.model)
        if scope not in DRAWING:  # vim_mm's own models of a library
            scope = cfg.get('default_scope')
        if scope not in DRAWING:
            raise ValueError(
                f'--show and --show-dir do not know how to draw for the model '
                f'{cfg.model.type}: name the hook in '
                'default_hooks.visualization and its visualizer.')
        hook, visualizer = DRAWING[scope]
        if not hooks.get('visualization'):
            hooks.visualization = dict(type=hook)
        cfg.visualizer = dict(cfg.get('visualizer') or dict(
            vis_backends=[dict(type='LocalVisBackend')]), type=visualizer)
    hook = hooks.visualization
    # the three libraries name the same settings differently
    known = arguments_of(
        class_of({
            '_scope_': cfg.get('default_scope'),
            **hook
        }, HOOKS))
    settings = dict(draw=True, enable=True, show=args.show)
    settings.update(wait_time=args.wait_time)
    if args.show_dir:
        folder = osp.abspath(args.show_dir)
        settings.update(test_out_dir=folder, out_dir=folder)
        cfg.visualizer.save_dir = folder
    hook.update({k: v for k, v in settings.items() if k in known})


def use_tta(cfg: Config) -> None:
    """Wrap the model and swap the pipeline as the config lays down."""
    missing = {'tta_model', 'tta_pipeline'} - set(cfg)
    if missing:
        raise ValueError(f'--tta needs {" and ".join(sorted(missing))} in the '
                         'config: add it, or leave the option out.')
    if not any(type_name(stage) == 'TestTimeAug'
               for stage in cfg.tta_pipeline):
        raise ValueError('`tta_pipeline` has no TestTimeAug, so an image '
                         'would be seen once; let its last stage be one.')
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(**cfg.tta_model, module=cfg.model)


class TaskHook(Hook):
    """Let the parts that tell tasks apart, if there are any, run one.

    A strategy builds the model when the test begins.

    Args:
        task (str): Name of the task.
    """

    def __init__(self, task: str) -> None:
        self.task = task

    def before_test(self, runner: Union[Runner, FlexibleRunner]) -> None:
        """Select the task."""
        if any(self.task in part.tasks for part in holders(runner.model)):
            select_task(runner.model, self.task)


def dump_predictions(loop: BaseLoop, path: str) -> None:
    """Write the predictions of a test, those of each task apart."""
    if not isinstance(loop, MultiTaskTestLoop):
        loop.evaluator.metrics.append(DumpResults(out_file_path=path))
        return
    stem, suffix = osp.splitext(path)
    for task, own in loop.loops.items():
        own.evaluator.metrics.append(
            DumpResults(out_file_path=f'{stem}.{task}{suffix}'))


def main() -> None:
    args = parse_args()
    cfg = build_config(args)
    runner = build_runner(cfg, TESTING)
    if args.task is not None:
        runner.register_hook(TaskHook(args.task))
    if args.out:
        dump_predictions(runner.test_loop, args.out)
    runner.test()


if __name__ == '__main__':
    run_cli(main)
