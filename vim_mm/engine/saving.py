# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Checkpoints of a run: an old one goes once its successor is complete.

mmengine's CheckpointHook removes first and saves then. Its two methods that
do so are replaced, for the hooks derived from it too.
"""

import os.path as osp
from bisect import bisect
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import FlexibleRunner, Runner

from vim_mm.utils.files import sweep, write_atomic

#: What the message hub of a checkpoint says of the run.
VALIDATE, BATCHES = 'validation_is_due', 'batches_of_epoch'
STOPPED_AT, SAMPLER_SEED = 'stopped_at', 'sampler_seed'
POINTER = 'last_checkpoint'
_BY_ITER = 'iter_{}.pth'


def write_before_removing() -> None:
    """Replace the methods of mmengine's hook. Idempotent."""
    if CheckpointHook._save_checkpoint_with_step is not _save_step:
        CheckpointHook.saves_best_first = CheckpointHook._save_best_checkpoint
        CheckpointHook._save_best_checkpoint = _save_best
        CheckpointHook._save_checkpoint_with_step = _save_step


def checkpoint_hooks(runner: Runner) -> List[CheckpointHook]:
    """The hooks that save a run."""
    return [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]


def remove_drafts(runner: Runner) -> None:
    """Delete what a killed run has not finished to write."""
    if is_main_process():
        folders = {runner.work_dir}
        folders.update(hook.out_dir for hook in checkpoint_hooks(runner))
        for folder in filter(osp.isdir, folders):
            sweep(Path(folder))


def save_now(runner: Runner, epoch: int, step: int) -> Optional[str]:
    """Save a run between two of its checkpoints, on all processes.

    Args:
        runner (Runner): The run.
        epoch (int): Epochs that it has finished.
        step (int): Steps that it has finished.

    Returns:
        str | None: The file; None if the run saves nothing.
    """
    hook = next(iter(checkpoint_hooks(runner)), None)
    if hook is None:
        return None
    meta = dict(epoch=epoch, iter=step)
    if not hook.by_epoch:
        hook._save_checkpoint_with_step(runner, step, meta)
    elif epoch and getattr(runner.train_loop, 'batches_done', 1) == 0:
        hook._save_checkpoint_with_step(runner, epoch, meta)
    else:  # its own names are of whole epochs
        runner.message_hub.update_info(STOPPED_AT, step)
        _write(hook, runner, _BY_ITER.format(step), meta, by_epoch=False)
    return hook.last_ckpt


# ----------------------------------------------------------- replaced methods


def _save_step(hook: CheckpointHook, runner: Runner, step: int,
               meta: dict) -> None:
    """Save, and then remove what is more than ``max_keep_ckpts``."""
    infos, outdated = runner.message_hub.runtime_info, []
    if hook.max_keep_ckpts > 0:
        steps = [each for each in hook.keep_ckpt_ids if each != step] + [step]
        # one that is killed before it removes them does so when resumed
        runner.message_hub.update_info('keep_ckpt_ids', steps)
        outdated += map(hook.filename_tmpl.format,
                        steps[:-hook.max_keep_ckpts])
    stopped = infos.pop(STOPPED_AT, None)
    if hook.by_epoch and stopped is not None:
        outdated.append(_BY_ITER.format(stopped))
    _write(hook, runner, hook.filename_tmpl.format(step), meta, hook.by_epoch)
    for name in outdated:
        _remove(hook, hook.file_backend.join_path(hook.out_dir, name))
    if hook.max_keep_ckpts > 0:
        hook.keep_ckpt_ids = deque(steps, hook.max_keep_ckpts)
        runner.message_hub.update_info('keep_ckpt_ids',
                                       list(hook.keep_ckpt_ids))


def _save_best(hook: CheckpointHook, runner: Runner, metrics: dict) -> None:
    """Save the best one, and then remove the best one so far."""
    if not hasattr(hook, 'file_backend'):
        return  # before the training, what another hook has judged
    before = _best_paths(hook)
    _set_best_paths(hook, dict.fromkeys(before))
    runner.message_hub.update_info(VALIDATE, 0)
    with _counted(runner):
        hook.saves_best_first(runner, metrics)
    runner.message_hub.runtime_info.pop(VALIDATE, None)
    after = _best_paths(hook)
    _set_best_paths(hook, {
        key: path or before.get(key)
        for key, path in after.items()
    })
    kept = set(_best_paths(hook).values())
    for path in set(before.values()) - kept - {None}:
        _remove(hook, path)


def _best_paths(hook: CheckpointHook) -> Dict[str, Optional[str]]:
    if not hook.save_best:
        return {}
    if len(hook.key_indicators) == 1:
        return {'': hook.best_ckpt_path}
    return dict(hook.best_ckpt_path_dict)


def _set_best_paths(hook: CheckpointHook, paths: Dict[str,
                                                      Optional[str]]) -> None:
    if '' in paths:
        hook.best_ckpt_path = paths['']
    elif paths:
        hook.best_ckpt_path_dict = paths


def _write(hook: CheckpointHook, runner: Runner, name: str, meta: dict,
           by_epoch: bool) -> None:
    """Write a checkpoint, and then that it is the last one."""
    hook.last_ckpt = hook.file_backend.join_path(hook.out_dir, name)
    runner.message_hub.update_info('last_ckpt', hook.last_ckpt)
    hub, loop = runner.message_hub, runner.train_loop
    if VALIDATE not in hub.runtime_info:
        due = _validates_after(runner, meta, by_epoch)
        hub.update_info(VALIDATE, int(due))
    hub.update_info(BATCHES, getattr(loop, 'batches_done', 0))
    with _counted(runner):
        runner.save_checkpoint(
            hook.out_dir,
            name,
            hook.file_client_args,
            save_optimizer=hook.save_optimizer,
            save_param_scheduler=hook.save_param_scheduler,
            meta=meta,
            by_epoch=by_epoch,
            backend_args=hook.backend_args,
            **hook.args)
    hub.runtime_info.pop(VALIDATE)
    if is_main_process():
        write_atomic(Path(runner.work_dir, POINTER), hook.last_ckpt)


def _validates_after(runner: Runner, meta: dict, by_epoch: bool) -> bool:
    """Whether the loop validates right after what is being saved."""
    loop = runner.train_loop
    if runner.val_loop is None or by_epoch != hasattr(loop, 'batches_done'):
        return False
    done, last = meta['iter'], loop.max_iters
    if by_epoch:
        done, last = meta['epoch'], loop.max_epochs
    interval = loop.dynamic_intervals[
        bisect(loop.dynamic_milestones, done + 1) - 1]
    return done >= loop.val_begin and (done % interval == 0 or done == last)


@contextmanager
def _counted(runner: Runner) -> Iterator[None]:
    """Within this context a runner notes the counters that it is given.

    mmengine's FlexibleRunner would note one more than its loop has counted.
    """
    original, loop = runner.save_checkpoint, runner.train_loop

    def save(*args: Any, meta: dict, by_epoch: bool, **kwargs: Any) -> None:
        before = loop._epoch, loop._iter
        if isinstance(runner, FlexibleRunner):
            loop._epoch = meta['epoch'] - by_epoch
            loop._iter = meta['iter'] - (not by_epoch)
        try:
            original(*args, meta=dict(meta), by_epoch=by_epoch, **kwargs)
        finally:
            loop._epoch, loop._iter = before

    runner.save_checkpoint = save
    try:
        yield
    finally:
        runner.save_checkpoint = original


def _remove(hook: CheckpointHook, path: str) -> None:
    if not is_main_process():
        return
    if hook.file_backend.isfile(path):
        hook.file_backend.remove(path)
    elif hook.file_backend.isdir(path):  # of DeepSpeed
        hook.file_backend.rmtree(path)


write_before_removing()
