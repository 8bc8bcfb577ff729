# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Settings of a run that must be numbers, lists or words of some kind.

mmengine and torch take what they are given, and end in an error of their own
when they count with it, or count wrongly.
"""

import logging
import os
from numbers import Integral, Real
from typing import Any, Callable, Dict, Iterator, Mapping, NamedTuple, Tuple

from mmengine.config import Config
from mmengine.runner import Priority

from .messages import short


class Demand(NamedTuple):
    """What a value must be.

    Attributes:
        holds (Callable): Whether a value is so.
        words (str): The same in words.
    """
    holds: Callable[[Any], bool]
    words: str


def _whole(least: int, most: float = float('inf'), but: tuple = ()) -> Demand:
    words = f'a whole number, {least} or more'
    if but:
        words += f', or {but[0]}'

    def holds(value: Any) -> bool:
        return isinstance(value, Integral) and not isinstance(
            value, bool) and (least <= value < most or value in but)

    return Demand(holds, words)


_COUNT, _ANY_COUNT, _OR_NEVER = _whole(1), _whole(0), _whole(1, but=(-1, ))
_SETTINGS: Dict[str, Demand] = {
    'train_cfg.max_iters': _ANY_COUNT,
    'train_cfg.max_epochs': _ANY_COUNT,
    'train_cfg.val_begin': _ANY_COUNT,
    'train_cfg.val_interval': _COUNT,
    'randomness.seed': _whole(0, 2**32),
    'optim_wrapper.accumulative_counts': _COUNT,
    'optim_wrapper.loss_scale': Demand(
        lambda value: value == 'dynamic' or isinstance(value, Mapping) or
        (isinstance(value, Real) and 0 < value < float('inf')),
        "'dynamic', a number above 0, or the settings of torch's GradScaler"),
    'optim_wrapper.clip_grad.max_norm': Demand(
        lambda value: isinstance(value, Real) and value > 0,
        'a number above 0'),
    'default_hooks.checkpoint.interval': _OR_NEVER,
    'default_hooks.checkpoint.max_keep_ckpts': _OR_NEVER,
    'default_hooks.logger.interval': _COUNT,
    'custom_hooks': Demand(
        lambda value: isinstance(value, (list, tuple)) and not any(
            isinstance(each, str) for each in value),
        'a list of dicts with a `type`'),
    'param_scheduler': Demand(
        lambda value: not isinstance(value, (str, Real)),
        'a dict with a `type`, or a list of them'),
    'resume': Demand(lambda value: isinstance(value, bool) or value == 'auto',
                     "True, False or 'auto'; `load_from` names a checkpoint"),
    'work_dir': Demand(lambda value: isinstance(value, (str, os.PathLike)),
                       'the path of a folder'),
    'log_level': Demand(
        lambda value: isinstance(value, Integral) or str(value) in logging.
        _nameToLevel, f'one of {", ".join(logging._nameToLevel)}'),
}
_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
#: What mmengine takes together.
_TOGETHER = [('train_dataloader', 'train_cfg', 'optim_wrapper'), *[
    (f'{stage}_dataloader', f'{stage}_cfg', f'{stage}_evaluator')
    for stage in ('val', 'test')
]]
_OF_LOADERS = dict(batch_size=_COUNT, num_workers=_ANY_COUNT)
_OF_MODELS = dict(
    loss_weight=Demand(
        lambda value: not isinstance(value, (bool, Real)) or
        (0 <= value < float('inf') and not isinstance(value, bool)),
        'a number, 0 or more: a loss of a negative weight is made larger'))
_OF_SETS = dict(
    pipeline=Demand(
        lambda value: isinstance(value, (list, tuple)) and len(value) > 0,
        'a list of transforms'))
_SHARE = Demand(
    lambda value: isinstance(value, Real) and 0 <= value < float('inf'),
    'a number, 0 or more')
_OF_SCHEDULERS = dict(
    dict.fromkeys(('gamma', 'factor', 'end_factor', 'eta_min', 'eta_max',
                   'eta_min_ratio', 'power'), _SHARE),
    start_factor=Demand(
        lambda value: isinstance(value, Real) and 0 < value <= 1,
        'a number above 0, and 1 at most'),
    T_max=_COUNT,
    step_size=_COUNT,
    milestones=Demand(
        lambda value: isinstance(value, (list, tuple)) and all(
            map(_ANY_COUNT.holds, value)), 'a list of whole numbers'))
_OF_HOOKS = dict(
    interval=_OR_NEVER,
    epochs=_ANY_COUNT,
    deals=_COUNT,
    max_pictures=_COUNT,
    priority=Demand(
        lambda value: str(value).upper() in Priority.__members__ or
        _whole(0, 101).holds(value),
        f'a number from 0 to 100, or one of {", ".join(Priority.__members__)}')
)


def check_settings(cfg: Config) -> None:
    """Refuse settings of another kind.

    Args:
        cfg (Config): The config of a run.

    Raises:
        ValueError: If there is one.
    """
    for where, demand in _SETTINGS.items():
        _check(cfg, where.split('.'), where, demand)
    for where, part in _dicts('model', cfg.get('model')):
        _check_all(part, where, _OF_MODELS)
    for part in _LOADERS:
        for where, loader in _loaders(part, cfg.get(part)):
            _check_all(loader, where, _OF_LOADERS)
    for where, dataset in data_sets(cfg):
        _check_all(dataset, where, _OF_SETS)
    for key, demands in (('param_scheduler', _OF_SCHEDULERS),
                         ('custom_hooks', _OF_HOOKS), ('default_hooks',
                                                       _OF_HOOKS)):
        for where, part in _parts(key, cfg.get(key)):
            _check_all(part, where, demands)


def data_sets(cfg: Config) -> Iterator[Tuple[str, Mapping]]:
    """The configs of a run's data sets, and where they stand.

    Args:
        cfg (Config): The config of a run.
    """
    for part in _LOADERS:
        for where, loader in _loaders(part, cfg.get(part)):
            yield from _sets(f'{where}.dataset', loader.get('dataset'))


def check_together(cfg: Config) -> None:
    """Refuse a part of a run without the others that it needs.

    Args:
        cfg (Config): The config of a run.

    Raises:
        ValueError: If there is one.
    """
    for keys in _TOGETHER:
        given = [key for key in keys if cfg.get(key) is not None]
        lacking = [key for key in keys if key not in given]
        if given and lacking:
            raise ValueError(
                f'The config has `{given[0]}` and no `{lacking[0]}`; give '
                f'{", ".join(keys)} together, or none of them.')


def _check_all(holder: Mapping, where: str, demands: Dict[str,
                                                          Demand]) -> None:
    for key, demand in demands.items():
        _check(holder, [key], f'{where}.{key}', demand)


def _parts(where: str, given: Any) -> Iterator[Tuple[str, Mapping]]:
    """Configs with a type, in lists or by name, and where they stand."""
    if isinstance(given, Mapping):
        if 'type' in given:
            yield where, given
            return
        inside = [(f'{where}.{key}', part) for key, part in given.items()]
    elif isinstance(given, (list, tuple)):
        inside = [(f'{where}[{i}]', part) for i, part in enumerate(given)]
    else:
        return
    for place, part in inside:
        yield from _parts(place, part)


def _dicts(where: str, given: Any) -> Iterator[Tuple[str, Mapping]]:
    """All dicts inside a config, and where they stand."""
    if isinstance(given, Mapping):
        yield where, given
        for key, part in given.items():
            yield from _dicts(f'{where}.{key}', part)
    elif isinstance(given, (list, tuple)):
        for index, part in enumerate(given):
            yield from _dicts(f'{where}[{index}]', part)


def _sets(where: str, dataset: Any) -> Iterator[Tuple[str, Mapping]]:
    """A data set, and those that it wraps."""
    for place, part in _parts(where, dataset):
        yield place, part
        for key in ('dataset', 'datasets'):
            yield from _sets(f'{place}.{key}', part.get(key))


def _loaders(where: str, loader: Any) -> Tuple[Tuple[str, Mapping], ...]:
    """A loader, or those of each task."""
    if not isinstance(loader, Mapping):
        return ()
    if 'dataset' in loader:
        return ((where, loader), )
    return tuple((f'{where}.{task}', own) for task, own in loader.items()
                 if isinstance(own, Mapping))


def _check(holder: Any, keys: list, where: str, demand: Demand) -> None:
    for key in keys:  # a Config is no mapping itself
        if not isinstance(holder, (Config, Mapping)):
            return
        holder = holder.get(key)
    if holder is not None and not demand.holds(holder):
        raise ValueError(f'`{where}` is {short(holder)}; give {demand.words}.')
