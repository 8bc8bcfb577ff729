# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Whether a run's optimizer can go on from the state in a checkpoint.

torch takes over what a file says: settings of another type, or the state of
another optimizer, would end the run at its first step or change how it learns.
"""

import copy
import math
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Mapping
from typing import Any, Dict, NoReturn, Optional

import torch
from mmengine.optim import OptimWrapperDict
from torch import Tensor
from torch.optim import Optimizer

from vim_mm.utils.checkpoint import CheckpointError
from vim_mm.utils.messages import short

#: How torch computes a step, which is up to the run.
_HOW = ('foreach', 'fused', 'capturable', 'differentiable')
#: Settings that files of earlier versions of torch lack.
_ADDED = ('amsgrad', 'maximize', 'decoupled_weight_decay', *_HOW)
_NOT_NEGATIVE = ('lr', 'initial_lr', 'weight_decay')
#: What the state of a wrapper has beside that of its optimizer.
_BASE, _SCALER = 'base_param_settings', 'loss_scaler'
#: Sizes of a tensor whose state stands for that of another.
_SIZES = (2, ) * 16


def is_like(own: Any, given: Any) -> bool:
    """Whether a value of a file may take the place of one of a run.

    Args:
        own: The run's: a number, text, None, tensor, or containers of these.
        given: The file's.
    """
    if own is None or given is None:
        return all(each is None or _is_number(each) for each in (own, given))
    if _is_number(own):
        return _is_number(given)
    if isinstance(own, (list, tuple)):
        return isinstance(given, (list, tuple)) and len(own) == len(
            given) and all(map(is_like, own, given))
    if isinstance(own, Mapping):
        return isinstance(given, Mapping) and own.keys() == given.keys(
        ) and all(is_like(value, given[key]) for key, value in own.items())
    if isinstance(own, Tensor):
        return isinstance(given, Tensor) and own.shape == given.shape
    return own is given if callable(own) else isinstance(given, type(own))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_optimizer(wrapper: Any, state: Any, file: str) -> None:
    """Refuse the state of another optimizer, or of other parameters.

    What the run's own does not know of is dropped, in place.

    Args:
        wrapper: The run's optimizer wrapper, or one of several. What is not
            built yet is left alone.
        state: What the checkpoint holds for it.
        file (str): Its name.

    Raises:
        CheckpointError: If the run could not go on from it.
    """
    optimizer = getattr(wrapper, 'optimizer', None)
    several = isinstance(wrapper, OptimWrapperDict)
    if not several and not isinstance(optimizer, Optimizer):
        return
    names = set(wrapper.keys()) if several else {'param_groups'}
    if not names <= state.keys():
        _refuse(file, f'is of {short(sorted(state))}, and the run has '
                f'{short(sorted(names))}')
    if several:
        drop_others(state, names)
        for name, each in wrapper.items():
            check_optimizer(each, state[name], file)
        return
    drop_others(state, ('state', 'param_groups', _BASE, _SCALER))
    _check_groups(optimizer, state['param_groups'], file)
    _check_state(optimizer, state['state'], file)
    own = {_BASE: wrapper.base_param_settings}
    if _SCALER in state:
        own[_SCALER] = getattr(wrapper, _SCALER).state_dict() if hasattr(
            wrapper, _SCALER) else None
    for key, value in own.items():
        if not is_like(value, state.get(key, value)):
            _refuse(file, f'has `{key}` {short(state[key])}')


def _check_groups(optimizer: Optimizer, groups: list, file: str) -> None:
    """Compare the groups of parameters and their settings."""
    own = optimizer.param_groups
    sizes, theirs = ([len(group['params']) for group in each]
                     for each in (own, groups))
    # of tensors that processes have parts of, a file has the names
    named = any(isinstance(each, str) for group in groups
                for each in group['params'])
    if len(own) != len(groups) or (sizes != theirs and not named):
        _refuse(file, f'is of {sum(theirs):,} parameters in {len(groups)} '
                f'groups, and the run has {sum(sizes):,} in {len(own)}')
    for mine, group in zip(own, groups):
        lacking = sorted(optimizer.defaults.keys() - group.keys() -
                         set(_ADDED))
        if lacking:
            _refuse(file, f'has no `{lacking[0]}`, which that of the run has')
        drop_others(group, mine.keys() - set(_HOW))
        for key, value in mine.items():
            given = group.setdefault(key, value)
            if key != 'params' and not (is_like(value, given)
                                        and _is_finite(given)) or (
                                            key in _NOT_NEGATIVE
                                            and given < 0):
                _refuse(file, f'has `{key}` {short(given)}')


def _is_finite(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not _is_number(value) or abs(value) < math.inf


def _check_state(optimizer: Optimizer, state: Mapping, file: str) -> None:
    """Compare what is kept of each parameter with what the run's keeps."""
    params = [(param, group) for group in optimizer.param_groups
              for param in group['params']]
    usual: Dict[tuple, Optional[Mapping]] = {}
    for index, given in state.items():
        if isinstance(index, str):
            continue  # parts of a tensor, by its name
        if type(index) is not int or not 0 <= index < len(params):
            _refuse(file, f'keeps something of parameter {short(index)}')
        param, group = params[index]
        kind = id(group), param.dim()
        if kind not in usual:
            usual[kind] = _usual_state(optimizer, *params[index])
        if not given or usual[kind] is None:
            continue
        if given.keys() != usual[kind].keys():
            _refuse(file, f'keeps {short(sorted(map(str, given)))} of each '
                    f'parameter, and that of the run '
                    f'{short(sorted(usual[kind]))}')
        for key, own in usual[kind].items():
            if isinstance(own, Tensor) and own.shape == _SIZES[:param.dim()]:
                own = param
            if not is_like(own, given[key]):
                _refuse(file, f'has `{key}` {short(given[key])}')


def _usual_state(optimizer: Optimizer, param: Tensor,
                 group: Dict[str, Any]) -> Optional[Mapping]:
    """What an optimizer keeps of a parameter: it steps on a tiny one.

    Returns:
        Mapping | None: By name; None if it cannot step on one alone.
    """
    tiny = torch.zeros(_SIZES[:param.dim()], device=param.device,
                       requires_grad=True)
    tiny.grad = torch.zeros_like(tiny)
    probe = copy.copy(optimizer)
    probe.state = defaultdict(dict)
    probe.param_groups = [dict(group, params=[tiny])]
    for hooks in ('_optimizer_step_pre_hooks', '_optimizer_step_post_hooks'):
        setattr(probe, hooks, OrderedDict())
    try:
        type(optimizer).step(probe)  # schedules count those of the instance
    except Exception:  # what an optimizer of others asks for
        return None
    return probe.state[tiny]


def drop_others(holder: Any, kept: Collection) -> None:
    """Take out of a dict what is not to be kept."""
    for key in [key for key in holder if key not in kept]:
        del holder[key]


def _refuse(file: str, what: str) -> NoReturn:
    raise CheckpointError(
        f'{file} cannot be gone on with: its optimizer {what}; resume with '
        'the config of the run that wrote it, or start from its weights with '
        '`load_from`.')
