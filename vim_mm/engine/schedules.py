# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Whether a checkpoint's schedule is that of the run that goes on with it."""

import logging
import math
from collections.abc import Mapping
from typing import Any, Dict, List

from mmengine.logging import print_log
from mmengine.runner import Runner

from vim_mm.utils.checkpoint import CheckpointError
from vim_mm.utils.messages import short
from .optimizer_state import drop_others, is_finite, is_like
from .run_state import COUNTERS

#: What changes while a schedule runs; all else of it is a setting.
_MOVING = ('last_step', '_global_step', '_last_value', 'base_values', 'best',
           'cooldown_counter', 'num_bad_epochs', 'mode_worse', 'verbose')
_STEPS = ('last_step', '_global_step')
#: What is infinite before the first validation.
_BEST, _INFINITE = ('best', 'mode_worse'), (math.inf, -math.inf)


def check_schedules(runner: Runner, checkpoint: Mapping, file: str) -> None:
    """Refuse a checkpoint of another schedule.

    mmengine would go on with the checkpoint's and say nothing: a longer run
    would end with the rates of the shorter one. What ends later than where
    the checkpoint is, and is the same else, is the config's.

    Args:
        runner (Runner): The run, with its schedules built.
        checkpoint (Mapping): The checkpoint to go on with.
        file (str): Its name.

    Raises:
        CheckpointError: If a schedule differs.
    """
    stored = checkpoint.get('param_schedulers')
    if stored is None or runner.param_schedulers is None:
        return
    own, theirs = _flat(runner.param_schedulers), _flat(stored)
    if len(own) != len(theirs):
        raise CheckpointError(
            f'{file} is of a run with {len(theirs)} parameter schedulers, and '
            f'the config has {len(own)}; {_FIX}')
    for scheduler, state in zip(own, theirs):
        _check_form(scheduler, state, checkpoint['meta'], file)
        mine, stored = _settings(vars(scheduler)), _settings(state)
        unlike = [
            key for key in stored if key in mine and mine[key] != stored[key]
        ]
        # mmengine sets it to the length of the run; until then it has no part
        if unlike == ['end'] and state.get('_global_step',
                                           state['end']) < state['end']:
            state['end'] = mine['end']
        elif unlike:
            key = min(unlike, key='end'.__eq__)
            raise CheckpointError(
                f'{file} is of a run whose {type(scheduler).__name__} has '
                f'`{key}` {stored[key]}, and the config makes it {mine[key]}; '
                f'{_FIX}')


def _check_form(scheduler: Any, state: Any, meta: Mapping,
                file: str) -> None:
    """Drop what a schedule does not keep; refuse what is none of its kind."""
    own, done = scheduler.state_dict(), 1 + max(map(meta.get, COUNTERS))
    drop_others(state, own.keys())
    for key, value in own.items():
        given = state.get(key, value)
        # other settings are compared later, by their values
        moves = key in _MOVING or key == 'end'
        finite = is_finite(given) or key in _BEST and given in _INFINITE
        fits = is_like(value, given) and finite and not (
            key in _STEPS and not -1 <= given <= done)
        if not fits and (moves or callable(value)
                         or not isinstance(given, _SETTINGS)):
            raise CheckpointError(
                f'{file} has {short(given)} for `{key}` of a '
                f'{type(scheduler).__name__}, so no run can go on from it; '
                'take another checkpoint, or load its weights with '
                '`load_from`.')


_SETTINGS = (bool, int, float, str, list, tuple, dict, type(None))
_FIX = ('resume with the settings of that run (`param_scheduler`, lengths of '
        'training and epochs), or start from its weights with `load_from`.')


def say_which_rates(runner: Runner, checkpoint: Mapping, file: str) -> None:
    """Say that a checkpoint's rates are used where the config has others."""
    optimizer = checkpoint.get('optimizer')
    wrapper = runner.optim_wrapper
    if not isinstance(optimizer, Mapping) or not hasattr(
            wrapper, 'param_groups'):
        return
    pairs = zip(wrapper.param_groups, optimizer.get('param_groups') or [])
    for own, stored in pairs:
        for key in ('initial_lr' if 'initial_lr' in own else 'lr',
                    'weight_decay'):
            if key in own and key in stored and own[key] != stored[key]:
                print_log(
                    f'{file} has `{key}` {stored[key]}, which is used, and '
                    f'not the {own[key]} of the config; start from its '
                    'weights with `load_from` to use that.',
                    logger='current',
                    level=logging.WARNING)
                return


def _flat(schedulers: Any) -> List[Any]:
    """All schedulers, those of each optimizer."""
    if isinstance(schedulers, Mapping) and 'last_step' not in schedulers:
        return [one for part in schedulers.values() for one in part]
    return list(schedulers)


def _settings(state: Any) -> Dict[str, Any]:
    if not isinstance(state, Mapping):
        return {}
    return {
        key: value
        for key, value in state.items() if key not in _MOVING
        and isinstance(value, _SETTINGS)
    }
