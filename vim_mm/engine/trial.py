# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What would fail or count for nothing only after hours of training."""

import logging
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

import torch
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.logging import print_log
from mmengine.optim import _ParamScheduler
from mmengine.optim.scheduler import ReduceOnPlateauParamScheduler
from mmengine.registry import DefaultScope
from mmengine.runner import (BaseLoop, EpochBasedTrainLoop, FlexibleRunner,
                             IterBasedTrainLoop, Runner, autocast)
from torch import nn

from vim_mm.models.tasks import holders, select_task
from vim_mm.utils.messages import short
from vim_mm.utils.refusals import refusal, refused_by_library
from .explained import place_of
from .judges import check_ends, ordinary_loops

#: Images that a validation is tried with.
_TRIED = 2
#: Metrics that are quick, and judge any part of a data set.
_QUICK = ('Accuracy', 'AveragePrecision', 'IoUMetric', 'MultiLabelMetric',
          'SingleLabelMetric')


# ------------------------------------------------------------------ schedules


def check_schedule(runner: Runner) -> None:
    """Refuse schedules that never act, and name what goes on too long.

    Args:
        runner (Runner): The run, ready to train.

    Raises:
        ValueError: If rates wait for epochs that there are not, or something
            for a validation.
    """
    loop = runner._train_loop
    by_epoch = isinstance(loop, EpochBasedTrainLoop) and loop.max_epochs > 0
    check_ends(loop, 'train_dataloader', by_epoch)
    judged = isinstance(runner._val_loop, BaseLoop)
    begin = getattr(loop, 'val_begin', 0)
    last = getattr(loop, 'max_epochs' if by_epoch else 'max_iters', None)
    if judged and last and begin > last:
        raise ValueError(f'`train_cfg.val_begin` is {begin}, and the run ends '
                         f'after {last}, so it is never validated; lower it.')
    for scheduler in _flat(runner.param_schedulers):
        name = type(scheduler).__name__
        if isinstance(scheduler, ReduceOnPlateauParamScheduler):
            if not judged:
                raise ValueError(f'{name} waits for a validation, and the run '
                                 f'has none; {_GIVE}.')
            continue
        if scheduler.by_epoch and isinstance(loop, IterBasedTrainLoop):
            raise ValueError(
                f'{name} counts epochs, and the run iterations, so rates '
                'would stay as they begin; set `param_scheduler.by_epoch='
                'False`, and its lengths in iterations.')
        most = runner.max_epochs if scheduler.by_epoch else runner.max_iters
        _say_too_long(scheduler, name, most)
    _check_waiting(runner, judged)


def _flat(schedulers: Any) -> Iterator[_ParamScheduler]:
    if isinstance(schedulers, Mapping):
        schedulers = schedulers.values()
    for each in schedulers or ():
        if isinstance(each, (list, tuple)):
            yield from _flat(each)
        else:
            yield each


def _say_too_long(scheduler: _ParamScheduler, name: str, most: int) -> None:
    marks = getattr(scheduler, 'milestones', None)
    last = min(marks) if marks else getattr(scheduler, 'T_max', 0)
    if last > 2 * most:
        print_log(
            f'`param_scheduler` has a {name} that goes on until {last}, and '
            f'the run ends after {most}: rates stay near those of its '
            'beginning.',
            logger='current',
            level=logging.WARNING)


_LOOK_AT = 'correct it, or `val_dataloader.dataset.pipeline`'
_GIVE = ('give `val_dataloader`, `val_evaluator` and `val_cfg`, or take it '
         'out')


def _check_waiting(runner: Runner, judged: bool) -> None:
    """Hooks that wait for a validation, and runs that leave nothing."""
    kept = False
    for hook in runner.hooks:
        if list(_names_of(hook)) and not judged:
            raise ValueError(
                f'{type(hook).__name__} waits for a validation, and the run '
                f'has none; {_GIVE}.')
        if type(hook) is CheckpointHook and hook.by_epoch and isinstance(
                runner._train_loop, IterBasedTrainLoop):
            print_log(
                'CheckpointHook counts epochs, and the run iterations, so it '
                'saves at the end alone; set `default_hooks.checkpoint.'
                'by_epoch=False`.',
                logger='current',
                level=logging.WARNING)
        kept = kept or type(hook).__name__ == 'ModuleToZooHook' or (
            isinstance(hook, CheckpointHook)
            and (hook.interval > 0 or hook.save_last or hook.save_best))
    if not kept:
        print_log(
            'Nothing of what is learned will be kept: there is no '
            '`default_hooks.checkpoint`, or it saves nothing.',
            logger='current',
            level=logging.WARNING)


# ----------------------------------------------------------------- validation


@torch.no_grad()
def try_validation(runner: Runner) -> None:
    """Judge two images before training, as it is to be done after hours.

    Nothing of it is logged, and the model is as before. Where processes hold
    a part of each tensor, all of them judge the same two images.

    Args:
        runner (Runner): The run, ready to train.

    Raises:
        ValueError: If that fails, or what is waited for is no metric.
    """
    model = runner.model
    if not isinstance(model, nn.Module) or type(runner) not in (
            Runner, FlexibleRunner):
        return
    loops = list(ordinary_loops(runner._val_loop))
    if not loops or runner.iter:  # a run that is resumed was tried
        return
    modes = {part: part.training for part in model.modules()}
    tasks = {holder: holder.task for holder in holders(model)}
    names: List[str] = []
    prefixes: List[str] = []
    model.eval()
    try:
        for task, loop in loops:
            scope = getattr(runner._val_loop, 'scopes', {}).get(task[1:])
            found = _judge(model, task[1:], loop, scope)
            before = f'{task[1:]}/' if task else ''
            names += [f'{before}{key}' for key in found]
            prefixes += [f'{before}{key}' for key in _slow_names(loop)]
    finally:
        for part, training in modes.items():
            part.training = training
        for holder, running in tasks.items():
            holder.select_task(running)
    _check_names(runner, names, prefixes)


def _judge(model: nn.Module, task: str, loop: Any,
           scope: Optional[str]) -> Dict[str, Any]:
    """Metrics of two images; none if it would take long to know them."""
    if task:
        select_task(model, task)
    scope = scope or DefaultScope.get_current_instance().scope_name
    where = f'val_evaluator.{task}' if task else 'val_evaluator'
    evaluator, loader = loop.evaluator, loop.dataloader
    try:
        with DefaultScope.overwrite_default_scope(scope):
            items = [
                loader.dataset[index]
                for index in range(min(_TRIED, len(loader.dataset)))
            ]
            batch = loader.collate_fn(items)
            with autocast(enabled=loop.fp16):
                outputs = model.val_step(batch)
            evaluator.process(data_samples=outputs, data_batch=batch)
            for metric in evaluator.metrics:
                _check_masks(metric, where)
            quick = all(map(_is_quick, evaluator.metrics))
            return evaluator.evaluate(len(items)) if quick else {}
    except Exception as error:
        if not refused_by_library(error):
            raise
        raise refusal(
            f'A validation would fail (`{where}`){place_of(model, error)}',
            error, _LOOK_AT) from error
    finally:
        for metric in evaluator.metrics:
            metric.results.clear()


def _check_masks(metric: Any, where: str) -> None:
    """Refuse to judge masks of a model that gives none, as mmdet does late."""
    asked = getattr(metric, 'metrics', None) or ()
    found = [each[1] for each in metric.results
             if isinstance(each, tuple) and len(each) == 2]
    if 'segm' in asked and found and not any('masks' in each
                                             for each in found):
        raise ValueError(
            f"A validation would fail: `{where}` judges masks ('segm'), and "
            "the model gives none; leave 'segm' out of `metric`.")


def _is_quick(metric: Any) -> bool:
    return type(metric).__name__ in _QUICK


def _slow_names(loop: Any) -> Iterator[str]:
    """What names of metrics begin with that were not computed."""
    if all(map(_is_quick, loop.evaluator.metrics)):
        return
    for metric in loop.evaluator.metrics:
        prefix = f'{metric.prefix}/' if metric.prefix else ''
        if prefix == 'coco/' and not getattr(metric, 'classwise', True):
            for kind in metric.metrics:
                # of proposals there are recalls
                yield f'{prefix}{kind}_mAP' if kind in (
                    'bbox', 'segm') else f'{prefix}AR'
        else:
            yield prefix


def _check_names(runner: Runner, names: List[str],
                 prefixes: List[str]) -> None:
    """Metrics that are waited for are among those that there are."""
    for owner, name in _waited_for(runner):
        if name not in ('auto', *names) and not name.startswith(
                tuple(prefixes)):
            given = [*names, *(f'{each}…' for each in prefixes)]
            raise ValueError(
                f'{owner} waits for the metric {short(name)}, and a '
                f'validation gives {", ".join(given)}; name one of these.')


def _names_of(hook: Hook) -> Iterator[Tuple[str, str]]:
    """What a hook of mmengine's own waits for; others may judge themselves."""
    if type(hook) is EarlyStoppingHook:
        yield 'EarlyStoppingHook.monitor', hook.monitor
    if type(hook) is CheckpointHook:
        best = hook.save_best or ()
        for name in [best] if isinstance(best, str) else best:
            yield 'CheckpointHook.save_best', name


def _waited_for(runner: Runner) -> Iterator[Tuple[str, str]]:
    for hook in runner.hooks:
        yield from _names_of(hook)
    for scheduler in _flat(runner.param_schedulers):
        if isinstance(scheduler, ReduceOnPlateauParamScheduler):
            yield type(scheduler).__name__, scheduler.monitor
