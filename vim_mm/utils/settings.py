# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Settings of a run that must be numbers, lists or words of some kind.

mmengine and torch take what they are given, and end in an error of their own
when they count with it, or count wrongly.
"""

import logging
from numbers import Real
from typing import Any, Dict, Iterator, Mapping, Tuple

from mmengine.config import Config
from mmengine.logging import print_log

from .config import type_name
from .demands import (OF_FOCAL, OF_HEADS, OF_HOOKS, OF_JUDGES, OF_LOADERS,
                      OF_MODELS, OF_OHEM, OF_SCHEDULERS, OF_SETS, OF_SLIDES,
                      OF_STAGES, SETTINGS, Demand)
from .messages import short

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_OF_PARTS = dict(
    val_evaluator=OF_JUDGES,
    test_evaluator=OF_JUDGES,
    param_scheduler=OF_SCHEDULERS,
    custom_hooks=OF_HOOKS,
    default_hooks=OF_HOOKS)
#: Images of each source in a batch of several.
_LEAST = 1
#: What mmengine takes together.
_TOGETHER = [('train_dataloader', 'train_cfg', 'optim_wrapper'), *[
    (f'{stage}_dataloader', f'{stage}_cfg', f'{stage}_evaluator')
    for stage in ('val', 'test')
]]


def check_settings(cfg: Config) -> None:
    """Refuse settings of another kind.

    Args:
        cfg (Config): The config of a run.

    Raises:
        ValueError: If there is one.
    """
    for where, demand in SETTINGS.items():
        _check(cfg, where.split('.'), where, demand)
    for where, part in dicts('model', cfg.get('model')):
        _check_all(part, where, OF_MODELS)
        if part.get('type') and type_name(part) == 'FocalLoss':
            _check_all(part, where, OF_FOCAL)
        if part.get('type') and type_name(part) == 'OHEMPixelSampler':
            _check_all(part, where, OF_OHEM)
        if 'num_classes' in part:
            _check_all(part, where, OF_HEADS)
        if part.get('mode') == 'slide':
            _check_slide(part, where)
    for part in _LOADERS:
        for where, loader in _loaders(part, cfg.get(part)):
            _check_all(loader, where, OF_LOADERS)
            _check_sources(loader, where)
    for where, dataset in data_sets(cfg):
        _check_all(dataset, where, OF_SETS)
        for step, part in dicts(f'{where}.pipeline', dataset.get('pipeline')):
            _say_magnitude(part, step)
            _check_all(part, step, OF_STAGES)
    for key, demands in _OF_PARTS.items():
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
    if cfg.get('model') is None:
        raise ValueError('The config has no `model`; give one.')
    if cfg.get('strategy') is not None and 'runner_type' not in cfg:
        raise ValueError("The config has a `strategy`, which mmengine's "
                         'ordinary runner does not read; set `runner_type='
                         "'FlexibleRunner'`, or leave the strategy out.")
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


def _check_slide(part: Mapping, where: str) -> None:
    """Refuse windows that there are not, or that leave gaps."""
    lacking = [key for key in OF_SLIDES if part.get(key) is None]
    if lacking:
        raise ValueError(f"`{where}.mode` is 'slide', and there is no "
                         f'`{where}.{lacking[0]}`; give height and width of '
                         'the windows, and the steps between them.')
    _check_all(part, where, OF_SLIDES)
    if any(step > size
           for step, size in zip(part['stride'], part['crop_size'])):
        raise ValueError(
            f'`{where}.stride` is {short(part["stride"])}, more than '
            f'`{where}.crop_size`, {short(part["crop_size"])}: pixels between '
            'the windows would be in none; make it smaller.')


def _check_sources(loader: Mapping, where: str) -> None:
    """Refuse batches of several sources that never fill, or of one each."""
    sampler = loader.get('sampler')
    size, ratio = (sampler.get(key) if isinstance(sampler, Mapping) else None
                   for key in ('batch_size', 'source_ratio'))
    if not isinstance(size, int):
        return
    if loader.get('batch_size') not in (None, size):
        raise ValueError(
            f'`{where}.batch_size` is {loader["batch_size"]}, and that of its '
            f'sampler {size}: batches would not have the sources that '
            '`source_ratio` says; set both to the same number.')
    if isinstance(ratio, (list, tuple)) and all(
            isinstance(each, Real) for each in ratio) and sum(ratio) > 0:
        # as mmdet counts them: the first source has what is left
        counts = [int(size * each / sum(ratio)) for each in ratio[1:]]
        if min(size - sum(counts), *counts) < _LEAST:
            raise ValueError(
                f'`{where}.sampler.source_ratio` is {list(ratio)}, so of '
                f'{size} images some source has none, and no batch would ever '
                'be full; raise its share or the batch size, or take the '
                'source out of the data set.')


def _say_magnitude(part: Mapping, where: str) -> None:
    """Name augmentation (RandAugment's) that is stronger than its range.

    ResNeSt's recipe goes beyond it, too.
    """
    level, most = part.get('magnitude_level'), part.get('total_level', 10)
    if isinstance(level, Real) and isinstance(most, Real) and not (
            0 <= level <= most):
        print_log(
            f'`{where}.magnitude_level` is {level}, and `total_level` {most}: '
            'images are changed more than its range says.',
            logger='current',
            level=logging.WARNING)


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


def dicts(where: str, given: Any) -> Iterator[Tuple[str, Mapping]]:
    """All dicts inside a config, and where they stand.

    Args:
        where (str): Where the config stands.
        given: The config, or any other value.
    """
    if isinstance(given, Mapping):
        yield where, given
        for key, part in given.items():
            yield from dicts(f'{where}.{key}', part)
    elif isinstance(given, (list, tuple)):
        for index, part in enumerate(given):
            yield from dicts(f'{where}[{index}]', part)


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
