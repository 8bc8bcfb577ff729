# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Whether a run's optimizer can go on from the state in a checkpoint.

torch takes over what a file says: settings of another type, or the state of
another optimizer, would end the run at its first step or change how it learns.
"""

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Mapping
from typing import Any, Dict, NoReturn, Optional

import torch
from mmengine.optim import OptimWrapperDict
from torch import Tensor
from torch.optim import Optimizer

from vim_mm.utils.arguments import arguments_of
from vim_mm.utils.checkpoint import CheckpointError
from vim_mm.utils.messages import short

#: How torch computes a step, which is up to the run.
_HOW = ('foreach', 'fused', 'capturable', 'differentiable')
#: Settings that files of earlier versions of torch lack.
_ADDED = ('amsgrad', 'maximize', 'decoupled_weight_decay', *_HOW)
#: What the state of a wrapper has beside that of its optimizer.
_BASE, _SCALER = 'base_param_settings', 'loss_scaler'
#: Numbers beyond it fit into no tensor.
LARGEST = 1e300
#: Of each axis of a tiny parameter; sums along it have one of 1.
SIZE = 2


def is_like(own: Any, given: Any) -> bool:
    """Whether a value of a file may take the place of one of a run.

    Args:
        own: The run's: a number, text, None, tensor, or containers of these.
        given: The file's.
    """
    if own is None:
        return given is None or _is_number(given)
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
    scaler = getattr(wrapper, _SCALER, None)
    beside = {
        _BASE: wrapper.base_param_settings,
        _SCALER: scaler and scaler.state_dict()
    }
    beside = {key: value for key, value in beside.items() if value}
    drop_others(state, ('state', 'param_groups', *beside))
    _check_groups(optimizer, state['param_groups'], file)
    _check_state(optimizer, state, file)
    for key, value in beside.items():
        if not is_like(value, state.get(key, value)):
            _refuse(file, f'has `{key}` {short(state[key])}')


def _check_groups(optimizer: Optimizer, groups: list, file: str) -> None:
    """Compare the groups of parameters and their settings."""
    own = optimizer.param_groups
    sizes, theirs = ([len(group['params']) for group in each]
                     for each in (own, groups))
    params = [each for group in groups for each in group['params']]
    # of tensors that processes have parts of, a file has the names
    named = bool(params) and all(isinstance(each, str) for each in params)
    numbered = all(type(each) is int for each in params) and (
        sizes == theirs and params == list(range(sum(sizes))))
    if len(own) != len(groups) or not (named or numbered):
        _refuse(file, f'is of {sum(theirs):,} parameters in {len(groups)} '
                f'groups, and the run has {sum(sizes):,} in {len(own)}')
    for mine, group in zip(own, groups):
        lacking = sorted(optimizer.defaults.keys() - group.keys() -
                         set(_ADDED))
        if lacking:
            _refuse(file, f'has no `{lacking[0]}`, which that of the run has')
        drop_others(group, group.keys() - set(_HOW))
        for key in mine.keys() - group.keys():
            group[key] = mine[key]
        # some count their steps here
        stepped = _stepped(optimizer, mine, mine['params'][0])
        known = mine if stepped is None else stepped.param_groups[0]
        drop_others(group, known)
        for key in group.keys() - {'params'}:
            given = group[key]
            if not is_like(known[key], given) or not is_finite(given):
                _refuse(file, f'has `{key}` {short(given)}')
        _check_ranges(optimizer, group, file)


def _check_ranges(optimizer: Optimizer, group: Mapping, file: str) -> None:
    """Let an optimizer of its kind say which settings it refuses."""
    known = set(arguments_of(type(optimizer))) - {'params'}
    try:
        type(optimizer)([torch.zeros(1, requires_grad=True)],
                        **{key: group[key] for key in known & group.keys()})
    except ValueError as error:
        _refuse(file, f'has settings that there are not ({error})')
    except Exception:  # what an optimizer of others asks for
        return


def is_finite(value: Any) -> bool:
    """Whether a number, or all in a list, can be computed with."""
    if isinstance(value, (list, tuple)):
        return all(map(is_finite, value))
    return not _is_number(value) or abs(value) <= LARGEST


def _check_state(optimizer: Optimizer, whole: Mapping, file: str) -> None:
    """Compare what is kept of each parameter with what the run's keeps."""
    groups = whole['param_groups']
    params = [(param, group) for own, group in zip(optimizer.param_groups,
                                                   groups)
              for param in own['params']]
    usual: Dict[tuple, Optional[Optimizer]] = {}
    known = {each for group in groups for each in group['params']}
    for index, given in whole['state'].items():
        if index not in known:
            _refuse(file, f'keeps something of parameter {short(index)}')
        if isinstance(index, str):
            continue  # parts of a tensor, by its name
        param, group = params[index]
        kind = id(group), param.dim()
        if kind not in usual:
            usual[kind] = _stepped(optimizer, group, param)
        if given and usual[kind] is not None:
            own = next(iter(usual[kind].state.values()), {})
            _check_kept(own, given, param, file)


def _check_kept(own: Mapping, given: Mapping, param: Tensor,
                file: str) -> None:
    """Compare what is kept of one parameter with what is of a tiny one."""
    lacking = sorted(own.keys() - given.keys())
    if lacking:
        _refuse(file, f'keeps {short(sorted(map(str, given)))} of each '
                f'parameter, and not `{lacking[0]}` as that of the run')
    for key, value in own.items():
        if isinstance(value, Tensor) and value.dim() == param.dim():
            # all of its size, or sums along an axis
            value = torch.empty([
                one if of_tiny == SIZE else of_tiny
                for one, of_tiny in zip(param.shape, value.shape)
            ], device='meta')
        if not is_like(value, given[key]):
            _refuse(file, f'has `{key}` {short(given[key])}')


def _stepped(optimizer: Optimizer, group: Mapping,
             param: Tensor) -> Optional[Optimizer]:
    """An optimizer of its kind after a step with a tiny parameter.

    Returns:
        Optimizer | None: None if it cannot step on one alone.
    """
    tiny = torch.zeros([SIZE] * param.dim(), device=param.device,
                       requires_grad=True)
    tiny.grad = torch.zeros_like(tiny)
    found = copy.copy(optimizer)
    found.state = defaultdict(dict)
    found.param_groups = [dict(group, params=[tiny])]
    for hooks in ('_optimizer_step_pre_hooks', '_optimizer_step_post_hooks'):
        setattr(found, hooks, OrderedDict())
    try:
        type(optimizer).step(found)  # schedules count those of the instance
    except Exception:  # what an optimizer of others asks for
        return None
    return found


def drop_others(holder: Any, kept: Collection) -> None:
    """Take out of a dict what is not to be kept."""
    for key in [key for key in holder if key not in kept]:
        del holder[key]


def _refuse(file: str, what: str) -> NoReturn:
    raise CheckpointError(
        f'{file} cannot be gone on with: its optimizer {what}; resume with '
        'the config of the run that wrote it, or start from its weights with '
        '`load_from`.')
