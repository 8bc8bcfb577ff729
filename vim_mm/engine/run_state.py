# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Whether a checkpoint has the form of what a run goes on from."""

from collections.abc import Mapping
from typing import Any

from vim_mm.utils.checkpoint import CheckpointError

COUNTERS = ('epoch', 'iter')


def counts(value: Any) -> bool:
    """Whether a value is a count, or a seed that random numbers take."""
    return type(value) is int and 0 <= value < 2**32


def check_counters(checkpoint: Any, file: str) -> None:
    """Refuse what a run cannot go on from.

    Raises:
        CheckpointError: If it was not written by a run, or its counters are
            no counts.
    """
    parts = ('meta', 'message_hub', 'state_dict')
    whole = isinstance(checkpoint, dict) and all(
        isinstance(checkpoint.get(part), Mapping) for part in parts)
    if not whole or not all(
            counts(checkpoint['meta'].get(key)) for key in COUNTERS):
        raise CheckpointError(
            f'{file} says nothing of where a run was, so none can go on from '
            'it; give a checkpoint that a run wrote, or load its weights with '
            '`load_from`.')
    for part, is_whole in dict(
            optimizer=_is_optimizer,
            param_schedulers=_are_schedulers,
            ema_state_dict=lambda value: isinstance(value, Mapping)).items():
        if part in checkpoint and not is_whole(checkpoint[part]):
            raise CheckpointError(
                f'{file} has something else for `{part}` than a run writes, '
                'so none can go on from it; take another checkpoint, or load '
                'its weights with `load_from`.')


def _is_optimizer(value: Any) -> bool:
    """Whether it is the state of an optimizer, or of several by name."""
    if not isinstance(value, Mapping) or not value:
        return False
    if 'param_groups' not in value:
        return all(map(_is_optimizer, value.values()))
    groups, state = value['param_groups'], value.get('state')
    return isinstance(groups, list) and all(
        isinstance(group, Mapping) and isinstance(group.get('params'), list)
        for group in groups) and isinstance(state, Mapping) and all(
            isinstance(each, Mapping) for each in state.values())


def _are_schedulers(value: Any) -> bool:
    """Whether they are states of schedules, or of those of each optimizer."""
    if isinstance(value, Mapping):
        return all(map(_are_schedulers, value.values()))
    return isinstance(value, list) and all(
        isinstance(each, Mapping) for each in value)
