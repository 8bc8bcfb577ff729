# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Schedules that never act, go on too long, or wait for what never comes."""

import inspect
import logging
from numbers import Real
from typing import Any, Dict, Iterator, Mapping, NamedTuple, Optional

from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.logging import print_log
from mmengine.optim.scheduler import ReduceOnPlateauParamScheduler
from mmengine.runner import (BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop,
                             Runner)

from vim_mm.models.multitask import MutualInformation
from vim_mm.utils.arguments import check_arguments
from vim_mm.utils.messages import short
from vim_mm.utils.wrappers import unwrap
from .gradients import wrappers
from .judges import check_ends
from .rate_schedules import GIVE, check_schedulers, flat


class Waits(NamedTuple):
    """What waits for a metric.

    Attributes:
        owner (str): Where the metric is named.
        metric (str): Its name.
        rule (str, optional): Whether more or less of it is better.
    """
    owner: str
    metric: str
    rule: Optional[str]


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
    check_schedulers(runner, judged)
    _say_late(runner)
    _check_waiting(runner, judged)
    for wrapper in wrappers(runner):
        count = getattr(wrapper, '_accumulative_counts', 1)
        if count > max(runner.max_iters, 1):
            _warn(f'`optim_wrapper.accumulative_counts` is {count}, and the '
                  f'run ends after {runner.max_iters} iterations, so weights '
                  'change once, at its end.')


def _warn(said: str) -> None:
    print_log(said, logger='current', level=logging.WARNING)


def _say_late(runner: Runner) -> None:
    """Name losses of routing that wait for more steps than there are."""
    routing = getattr(unwrap(runner.model), 'routing', None)
    if isinstance(routing, MutualInformation) and not routing.exact \
            and routing.start >= runner.max_iters > 0:
        _warn(f'`model.routing.start` is {routing.start}, and the run ends '
              f'after {runner.max_iters} iterations: its losses stay 0, '
              'unless a checkpoint has counted before; lower it.')


def check_rules(runner: Runner) -> None:
    """Name what takes the worst for the best, as far as names tell.

    Args:
        runner (Runner): The run, ready to train.
    """
    for owner, metric, rule in waiting(runner):
        more, less = (
            any(key.lower() in metric.lower() for key in keys)
            for keys in (CheckpointHook._default_greater_keys,
                         CheckpointHook._default_less_keys))
        right = 'greater' if more else 'less'
        if more != less and rule not in (right, None):
            _warn(f"{owner} waits for the metric '{metric}' by rule='{rule}': "
                  f"if {'more' if more else 'less'} of it is better, the "
                  f"worst is taken for the best; set rule='{right}'.")


def say_nan(runner: Runner, metrics: Optional[Dict[str, Any]]) -> None:
    """Say that a metric which is waited for is no number.

    Args:
        runner (Runner): The run.
        metrics (dict, optional): What a validation has given.
    """
    for owner, name, _ in waiting(runner):
        value = (metrics or {}).get(name)
        if isinstance(value, Real) and value != value:
            _warn(f'{owner} waits for the metric {short(name)}, which is NaN: '
                  'nothing is the best, or better; look at what it is '
                  'computed of.')


def _check_waiting(runner: Runner, judged: bool) -> None:
    """Hooks that wait for a validation, and runs that leave nothing."""
    kept = False
    for hook in runner.hooks:
        if list(_names_of(hook)) and not judged:
            raise ValueError(
                f'{type(hook).__name__} waits for a validation, and the run '
                f'has none; {GIVE}.')
        if type(hook) is CheckpointHook and hook.by_epoch and isinstance(
                runner._train_loop, IterBasedTrainLoop):
            _warn('CheckpointHook counts epochs, and the run iterations, so '
                  'it saves at the end alone; set `default_hooks.checkpoint.'
                  'by_epoch=False`.')
        if isinstance(hook, CheckpointHook):
            _check_saving(runner, hook)
        for epoch in _switches(hook):
            if epoch > max(runner.max_epochs, 1):
                _warn(f'{type(hook).__name__} acts in epoch {epoch}, and the '
                      f'run ends after {runner.max_epochs}: it never does.')
        kept = kept or type(hook).__name__ == 'ModuleToZooHook' or (
            isinstance(hook, CheckpointHook)
            and (hook.interval > 0 or hook.save_last or hook.save_best))
    if not kept:
        _warn('Nothing of what is learned will be kept: there is no '
              '`default_hooks.checkpoint`, or it saves nothing.')


def _switches(hook: Hook) -> Iterator[int]:
    """Epochs from which hooks of the libraries change a run."""
    if isinstance(getattr(hook, 'switch_epoch', None), int):
        yield hook.switch_epoch  # PipelineSwitchHook
    schedule = getattr(hook, 'schedule', None)
    if isinstance(schedule, Mapping):  # SwitchRecipeHook
        yield from (key for key in schedule if isinstance(key, int))


def _check_saving(runner: Runner, hook: CheckpointHook) -> None:
    """Refuse settings that the hook hands on to a runner that has none such.
    """
    saves = inspect.signature(runner.save_checkpoint).parameters
    check_arguments(type(hook), set(hook.args) - set(saves))


def _names_of(hook: Hook) -> Iterator[Waits]:
    """What a hook of mmengine's own waits for; others may judge themselves."""
    if type(hook) is EarlyStoppingHook:
        yield Waits('EarlyStoppingHook.monitor', hook.monitor, hook.rule)
    if type(hook) is CheckpointHook and hook.save_best:
        best = hook.save_best
        best = [best] if isinstance(best, str) else best
        # for 'auto' there is one that is left out
        for name, rule in zip(best, hook.rules):
            yield Waits('CheckpointHook.save_best', name, rule)
    # of a comparison, which reads it once all has run
    if getattr(hook, 'waits_for', None) is not None:
        yield Waits('The comparison', hook.waits_for, None)


def waiting(runner: Runner) -> Iterator[Waits]:
    """What hooks and schedulers of a run wait for.

    Args:
        runner (Runner): The run, ready to train.
    """
    for hook in runner.hooks:
        yield from _names_of(hook)
    for scheduler in flat(runner.param_schedulers):
        if isinstance(scheduler, ReduceOnPlateauParamScheduler):
            yield Waits(
                type(scheduler).__name__, scheduler.monitor, scheduler.rule)
