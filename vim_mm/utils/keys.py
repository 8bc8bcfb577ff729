# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Keys of a whole config that nobody reads, as they are misspelt.

A config may hold names of its own, such as ``train_pipeline``, so mmengine
passes over whatever it does not know.
"""

import inspect
import logging
from typing import Any, Dict, Iterable, Iterator, Mapping, Tuple

from mmengine.config import Config
from mmengine.logging import print_log
from torch.utils.data import DataLoader

from .known_keys import FORMER, HELPERS, LEFT_OVER, check_names, known_keys
from .pipelines import check_pipelines
from .settings import check_settings, data_sets, dicts

#: What mmengine reads of `paramwise_cfg`, and of each of its `custom_keys`.
PARAMWISE = ('custom_keys', 'bias_lr_mult', 'bias_decay_mult',
             'norm_decay_mult', 'flat_decay_mult', 'dwconv_decay_mult',
             'dcn_offset_lr_mult', 'bypass_duplicate')
RATES = ('lr_mult', 'decay_mult')
#: What is read inside of keys that no registry builds.
_INSIDE: Dict[str, Tuple[str, ...]] = {
    'default_hooks': ('runtime_info', 'timer', 'sampler_seed', 'logger',
                      'param_scheduler', 'checkpoint', 'visualization'),
    'env_cfg': ('cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'),
    'randomness': ('seed', 'diff_rank_seed', 'deterministic'),
    'auto_scale_lr': ('enable', 'base_batch_size'),
    'optim_wrapper.clip_grad': ('type', 'max_norm', 'norm_type', 'clip_value',
                                'error_if_nonfinite', 'foreach'),
    'optim_wrapper.paramwise_cfg': PARAMWISE,
}
_CLOSED = ('env_cfg', 'randomness', 'auto_scale_lr', 'optim_wrapper.clip_grad')
#: What heads read of their `test_cfg`: some say `max_per_image`.
_OF_TESTS = ('score_thr', 'nms_pre', 'nms', 'min_bbox_size', 'max_per_img',
             'max_per_image', 'mask_thr_binary', 'mask_thr', 'filter_thr',
             'object_mask_thr', 'iou_thr', 'conf_thr', 'mask_overlap',
             'multi_label', 'yolox_style', 'rpn', 'rcnn', 'mode', 'crop_size',
             'stride', 'corner_topk', 'distance_threshold',
             'stuff_area_limit', 'nms_across_levels')
#: What detectors read of their `train_cfg`.
_OF_TRAININGS = ('assigner', 'sampler', 'rpn', 'rpn_proposal', 'rcnn',
                 'allowed_border', 'pos_weight', 'initial_assigner',
                 'initial_epoch', 'bbox_sampler')
#: What data sets read of their `filter_cfg`.
_FILTERS = ('filter_empty_gt', 'min_size', 'bbox_min_size')
_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def check_keys(cfg: Config) -> None:
    """Refuse a key that is nearly one that is read, or a value of no use.

    Args:
        cfg (Config): The config of a run.

    Raises:
        ValueError: If there is one; names what was probably meant.
    """
    check_settings(cfg)
    check_pipelines(cfg)
    known = known_keys()
    _check_former('', cfg)
    for key, now in HELPERS.items():
        if cfg.get(key) is not None and not cfg.get(now):
            _warn(f'`{key}` is read no more, and there is no `{now}`, which '
                  'is read in its place.')
    # helpers are called `val_evaluator_full` beside `val_evaluator`
    check_names('', [
        key for key in cfg if not any(
            key != name and key.startswith(name) for name in known & set(cfg))
    ], known)
    for name in known & set(cfg) - {'model'}:  # `models` are helpers
        if f'{name}s' in cfg and f'{name}s' not in known:
            _warn(f'Nobody reads `{name}s`, beside `{name}`, which is read; '
                  'give its settings there, or a helper another name.')
    for where in _LOADERS:
        _check_former(f'{where}.', _mapping(cfg, where))
    for where, inside, names in _nested(cfg):
        # what others call these is less alike: `score_threshold`
        near = 0.7 if names is _OF_TESTS else 0.85
        check_names(f'{where}.', inside, names, near)
        _say_unread(where, inside, names)


def _check_former(where: str, given: Mapping) -> None:
    """Refuse or name what the first generation read, if it says anything."""
    names = dict(FORMER, **LEFT_OVER)
    for key in sorted(names.keys() & set(given)):
        value = given[key]
        if not (any(value.values()) if isinstance(value, Mapping) else value):
            continue
        said = f'`{where}{key}` is read no more; use {names[key]}.'
        if key in FORMER:
            raise ValueError(said)
        _warn(said)


def _say_unread(where: str, inside: Mapping, known: Iterable[str]) -> None:
    """Name keys of parts that nobody but mmengine reads."""
    unread = sorted(set(inside) - set(known))
    if where in _CLOSED and unread:
        _warn(f'Nobody reads {", ".join(f"`{where}.{key}`" for key in unread)}'
              f'; mmengine reads {", ".join(known)}.')


def _warn(said: str) -> None:
    print_log(said, logger='current', level=logging.WARNING)


def _nested(cfg: Config) -> Iterator[Tuple[str, Mapping, Iterable[str]]]:
    """Parts of a config, where they stand, and what is read in them."""
    for where, names in _INSIDE.items():
        yield where, _mapping(cfg, where), names
    keys = 'optim_wrapper.paramwise_cfg.custom_keys'
    for name, own in _mapping(cfg, keys).items():
        if isinstance(own, Mapping):
            yield f"{keys}['{name}']", own, RATES
    for where, part in dicts('model', cfg.get('model')):
        tested = f'{where}.test_cfg'
        for place, own in dicts(tested, _mapping(part, 'test_cfg')):
            if 'type' not in own:
                yield place, own, _OF_TESTS
        trained = f'{where}.train_cfg'
        for place, own in dicts(trained, _mapping(part, 'train_cfg')):
            if 'type' not in own:
                yield place, own, _OF_TRAININGS
    for where, dataset in data_sets(cfg):
        yield f'{where}.filter_cfg', _mapping(dataset, 'filter_cfg'), _FILTERS
    loaded = [*inspect.signature(DataLoader).parameters, 'num_batch_per_epoch']
    for where in _LOADERS:
        if 'dataset' in _mapping(cfg, where):  # and not by task
            yield where, cfg[where], loaded


def _mapping(cfg: Any, where: str) -> Mapping:
    for key in where.split('.'):  # a Config is no mapping itself
        cfg = cfg.get(key) if isinstance(cfg, (Config, Mapping)) else None
    return cfg if isinstance(cfg, Mapping) else {}
