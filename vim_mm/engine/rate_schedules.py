# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Schedules of rates that never act, end too early, or go on too long."""

import logging
from numbers import Real
from typing import Any, Iterator, Mapping

from mmengine.logging import print_log
from mmengine.optim import _ParamScheduler
from mmengine.optim.scheduler import ReduceOnPlateauParamScheduler
from mmengine.optim.scheduler.momentum_scheduler import MomentumSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import IterBasedTrainLoop, Runner

#: What to do where something waits for a validation.
GIVE = ('give `val_dataloader`, `val_evaluator` and `val_cfg`, or take it '
        'out')


def check_schedulers(runner: Runner, judged: bool) -> None:
    """Look at what the schedulers of a run make of its rates.

    Args:
        runner (Runner): The run, ready to train.
        judged (bool): Whether it is validated.

    Raises:
        ValueError: If rates wait for epochs that there are not or for a
            validation, or a schedule has fewer steps than it is asked for.
    """
    loop = runner._train_loop
    for scheduler in flat(runner.param_schedulers):
        name = type(scheduler).__name__
        if isinstance(scheduler, ReduceOnPlateauParamScheduler):
            if not judged:
                raise ValueError(f'{name} waits for a validation, and the run '
                                 f'has none; {GIVE}.')
            continue
        if scheduler.by_epoch and isinstance(loop, IterBasedTrainLoop):
            raise ValueError(
                f'{name} counts epochs, and the run iterations, so rates '
                'would stay as they begin; set `param_scheduler.by_epoch='
                'False`, and its lengths in iterations.')
        most = runner.max_epochs if scheduler.by_epoch else runner.max_iters
        _check_rates(scheduler, name)
        _check_steps(scheduler, name, most)
        _say_too_long(scheduler, name, most)
    _say_early_zero(runner)
    _say_one_rate(runner)


def flat(schedulers: Any) -> Iterator[_ParamScheduler]:
    """Schedulers, of whatever lists and dicts they are in."""
    if isinstance(schedulers, Mapping):
        schedulers = schedulers.values()
    for each in schedulers or ():
        if isinstance(each, (list, tuple)):
            yield from flat(each)
        else:
            yield each


def _check_rates(scheduler: _ParamScheduler, name: str) -> None:
    """Look at what a scheduler makes of the rates that it begins with."""
    base = max(getattr(scheduler, 'base_values', None) or [0])
    least = getattr(scheduler, 'eta_min', None)
    if isinstance(least, Real) and least > base > 0 and not isinstance(
            scheduler, MomentumSchedulerMixin):
        # as in the first half of a cycle
        _warn(f'`eta_min` of {name} is {least:g}, more than the {base:g} that '
              'it begins with, so rates rise.')
    gamma = getattr(scheduler, 'gamma', None)
    if isinstance(gamma, Real) and gamma > 1:
        _warn(f'`gamma` of {name} is {gamma}: rates are multiplied by it, so '
              'they grow.')


def _check_steps(scheduler: _ParamScheduler, name: str, most: int) -> None:
    """Refuse one that raises when it is asked for more steps than it has."""
    total = getattr(scheduler, 'total_steps', None)
    asked = min(scheduler.end, most) - scheduler.begin
    if total is not None and asked > total:
        raise ValueError(
            f'`param_scheduler` has a {name} of {total:g} steps '
            f'(`total_steps`), and the run asks it for {asked}, so it would '
            f'end there in an error; set `total_steps={asked}`, or let the '
            'run end with it.')


def _say_too_long(scheduler: _ParamScheduler, name: str, most: int) -> None:
    marks = getattr(scheduler, 'milestones', None)
    last = min(marks) if marks else getattr(
        scheduler, 'T_max', getattr(scheduler, 'total_steps', 0))
    begin = getattr(scheduler, 'begin', 0)
    warms = getattr(scheduler, 'start_factor', 1) < getattr(
        scheduler, 'end_factor', 1)
    if begin >= most > 0:
        _warn(f'`param_scheduler` has a {name} that begins at {begin}, and '
              f'the run ends after {most}: it never acts.')
    elif last > 2 * most:
        _warn(f'`param_scheduler` has a {name} that goes on until {last}, and '
              f'the run ends after {most}: rates stay near those of its '
              'beginning.')
    elif warms and scheduler.end >= most > 1:
        _warn(f'`param_scheduler` has a {name} that warms up for the whole '
              f'run, {most} long; set its `end`.')


def _say_early_zero(runner: Runner) -> None:
    """Name rates that are 0 from some step on, long before the run ends."""
    each = [scheduler for scheduler in flat(runner.param_schedulers)
            if hasattr(scheduler, 'end')
            and not isinstance(scheduler, MomentumSchedulerMixin)]
    for scheduler in each:
        most = runner.max_epochs if scheduler.by_epoch else runner.max_iters
        later = any(other.begin >= scheduler.end for other in each)
        if _ends_at_zero(scheduler) and scheduler.end < most and not later:
            _warn(f'`param_scheduler` has a {type(scheduler).__name__} whose '
                  f'rate is 0 from {scheduler.end} on, and the run ends after '
                  f'{most}: nothing is learned from there on; let it end with '
                  'the run.')


def _ends_at_zero(scheduler: _ParamScheduler) -> bool:
    if getattr(scheduler, 'end_factor', 1) == 0:
        return True
    length = scheduler.end - scheduler.begin
    # a cosine comes back from where it was after `T_max`
    there = abs(getattr(scheduler, 'T_max', length) - length) <= 1
    return there and 0 in (getattr(scheduler, 'eta_min', None),
                           getattr(scheduler, 'eta_min_ratio', None))


def _say_one_rate(runner: Runner) -> None:
    """Name factors of rates beside a schedule that sets rates itself."""
    cycles = [
        type(each).__name__ for each in flat(runner.param_schedulers)
        if isinstance(each, OneCycleParamScheduler) and each.param_name == 'lr'
        and len({group.get('max_lr')
                 for group in each.optimizer.param_groups}) == 1
    ]
    cfg = runner.cfg.get('optim_wrapper')
    given = (cfg.get('paramwise_cfg') if isinstance(cfg, dict) else None) or {}
    keys = [key for key, value in given.items()
            if key.endswith('lr_mult') and value not in (1, None)]
    keys += [f"custom_keys['{key}'].lr_mult"
             for key, own in (given.get('custom_keys') or {}).items()
             if own.get('lr_mult', 1) != 1]
    if cycles and keys:
        _warn(f'{cycles[0]} gives all parameters its own rate, `eta_max`, so '
              f'{", ".join(f"`paramwise_cfg.{key}`" for key in keys)} '
              f'{"changes" if len(keys) == 1 else "change"} nothing; give '
              '`eta_max` a list, a rate for each group of parameters, or take '
              'another schedule.')


def _warn(said: str) -> None:
    print_log(said, logger='current', level=logging.WARNING)
