# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What settings of a run must be: numbers, lists or words of some kind."""

import logging
import os
from numbers import Integral, Real
from typing import Any, Callable, Dict, Mapping, NamedTuple

from mmengine.logging import HistoryBuffer


class Demand(NamedTuple):
    """What a value must be.

    Attributes:
        holds (Callable): Whether a value is so.
        words (str): The same in words.
    """
    holds: Callable[[Any], bool]
    words: str


def _whole(least: int, most: float = float('inf'), but: tuple = (),
           kind: type = Integral) -> Demand:
    words = f'a whole number, {least} or more'
    if but:
        words += f', or {but[0]}'

    def holds(value: Any) -> bool:
        return isinstance(value, kind) and not isinstance(
            value, bool) and value % 1 == 0 and (
                least <= value < most or value in but)

    return Demand(holds, words)


def _is_number(value: Any, least: float = float('-inf'),
               below: float = float('inf')) -> bool:
    return isinstance(value, Real) and not isinstance(
        value, bool) and least <= value < below


def _all(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether a value is so, or each in a list of some."""

    def all_hold(value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return len(value) > 0 and all(map(holds, value))
        return holds(value)

    return all_hold


def _is_size(value: Any) -> bool:
    """Whether numbers, in lists of any depth, are above 0; or it is none."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_size, value))
    return not isinstance(value, Real) or value > 0


_COUNT, _ANY_COUNT, _OR_NEVER = _whole(1), _whole(0), _whole(1, but=(-1, ))
#: Loops take 40000 / 5 as well.
_LENGTH, _ANY_LENGTH = _whole(1, kind=Real), _whole(0, kind=Real)
_SOME = Demand(lambda value: not isinstance(value, (list, tuple)) or
               len(value) > 0, 'one at least')
SETTINGS: Dict[str, Demand] = {
    'train_cfg.max_iters': _ANY_LENGTH,
    'train_cfg.max_epochs': _ANY_LENGTH,
    'train_cfg.val_begin': _ANY_LENGTH,
    'train_cfg.val_interval': _LENGTH,
    'randomness.seed': _whole(0, 2**32),
    'auto_scale_lr': Demand(lambda value: isinstance(value, Mapping),
                            'a dict with `enable` and `base_batch_size`'),
    'auto_scale_lr.base_batch_size': _COUNT,
    'optim_wrapper.accumulative_counts': _COUNT,
    'optim_wrapper.loss_scale': Demand(
        lambda value: value == 'dynamic' or isinstance(value, Mapping) or
        (isinstance(value, Real) and 0 < value < float('inf')),
        "'dynamic', a number above 0, or the settings of torch's GradScaler"),
    'optim_wrapper.clip_grad.max_norm': Demand(
        lambda value: isinstance(value, Real) and value > 0,
        'a number above 0'),
    'optim_wrapper.clip_grad.clip_value': Demand(
        lambda value: isinstance(value, Real) and value > 0,
        'a number above 0'),
    'default_hooks.checkpoint.interval': _OR_NEVER,
    'default_hooks.checkpoint.max_keep_ckpts': _OR_NEVER,
    'default_hooks.logger.interval': _COUNT,
    'log_processor.window_size': _COUNT,
    'log_processor.custom_cfg': Demand(
        lambda value: isinstance(value, (list, tuple)) and all(
            isinstance(each, Mapping) and 'data_src' in each and each.get(
                # the first one that is built notes what there is
                'method_name') in HistoryBuffer()._statistics_methods
            for each in value),
        'a list of dicts with `data_src`, and a `method_name` such as '
        "'mean', 'min', 'max' or 'current'"),
    'custom_hooks': Demand(
        lambda value: isinstance(value, (list, tuple)) and not any(
            isinstance(each, str) for each in value),
        'a list of dicts with a `type`'),
    'param_scheduler': Demand(
        lambda value: not isinstance(value, (str, Real)),
        'a dict with a `type`, or a list of them'),
    'resume': Demand(lambda value: isinstance(value, bool) or value == 'auto',
                     "True, False or 'auto'; `load_from` names a checkpoint"),
    'val_evaluator': _SOME,
    'test_evaluator': _SOME,
    'load_from': Demand(lambda value: isinstance(value, (str, os.PathLike)),
                        'the path of a checkpoint'),
    'work_dir': Demand(lambda value: isinstance(value, (str, os.PathLike)),
                       'the path of a folder'),
    'log_level': Demand(
        lambda value: isinstance(value, Integral) or str(value) in logging.
        _nameToLevel, f'one of {", ".join(logging._nameToLevel)}'),
}
_SWITCH = Demand(lambda value: isinstance(value, bool), 'True or False')
OF_LOADERS = dict(
    batch_size=_COUNT,
    num_workers=_ANY_COUNT,
    **dict.fromkeys(('drop_last', 'persistent_workers', 'pin_memory'),
                    _SWITCH))
_NUMBER = Demand(_is_number, 'a number')
_SHARE_BELOW_1 = Demand(lambda value: not isinstance(value, Real) or
                        _is_number(value, 0, 1),
                        'a number from 0 to below 1')
_SIZES = Demand(_is_size, 'numbers above 0')
_BEST = Demand(_all(_COUNT.holds),
               'a whole number, 1 or more, or a list of such')
_THRESHOLD = Demand(
    _all(lambda value: value is None or _is_number(value, below=1)),
    'a number below 1, or a list of such: no score is larger')
_OVERLAP = Demand(
    _all(lambda value: _is_number(value, 0) and value <= 1),
    'a number from 0 to 1, or a list of such')
#: Of metrics.
OF_JUDGES = dict(
    topk=_BEST,
    **dict.fromkeys(('metric', 'iou_metrics'), _SOME),
    **dict.fromkeys(('thr', 'thrs', 'score_thr'), _THRESHOLD),
    **dict.fromkeys(('iou_thr', 'iou_thrs'), _OVERLAP))
#: Of losses that weigh objects by alpha and the rest by 1 - alpha.
OF_FOCAL = dict(
    alpha=_OVERLAP,
    gamma=Demand(lambda value: not isinstance(value, Real) or
                 _is_number(value, 0), 'a number, 0 or more'))
#: Of heads that tell classes apart, by a sigmoid where there is one.
OF_HEADS = dict(threshold=_SHARE_BELOW_1)
#: Of samplers of hard pixels.
OF_OHEM = dict(
    thresh=Demand(lambda value: _is_number(value, 0, 1),
                  'a number from 0 to below 1, or None'),
    min_kept=_COUNT)
#: Of sliding windows.
OF_SLIDES = dict.fromkeys(
    ('crop_size', 'stride'),
    Demand(
        lambda value: isinstance(value, (list, tuple)) and len(value) == 2
        and all(map(_COUNT.holds, value)),
        'two whole numbers, 1 or more, height and width'))
OF_MODELS = dict(
    type=Demand(lambda value: isinstance(value, str) or callable(value),
                'the name of a class, or a class'),
    topk=_BEST,
    score_thr=Demand(lambda value: not isinstance(value, Real) or value < 1,
                     'a number below 1: no score is larger'),
    iou_threshold=Demand(lambda value: not isinstance(value, Real) or
                         0 <= value <= 1, 'a number from 0 to 1'),
    **dict.fromkeys(('pos_iou_thr', 'min_pos_iou'), _OVERLAP),
    neg_iou_thr=Demand(
        lambda value: _OVERLAP.holds(value) and max(
            value if isinstance(value, (list, tuple)) else [value]) > 0,
        'a number above 0, and 1 at most: no anchor would be background'),
    # of anchors
    **dict.fromkeys(('ratios', 'scales', 'base_sizes', 'octave_base_scale'),
                    _SIZES),
    **dict.fromkeys(('mask_thr_binary', 'mask_thr'), Demand(
        lambda value: not isinstance(value, Real) or _is_number(
            value, below=1), 'a number below 1: no pixel of a mask is more')),
    loss_name=Demand(
        lambda value: not isinstance(value, str) or 'loss' in value,
        "a name with 'loss' in it: others are logged, and not learned by"),
    **dict.fromkeys(('max_per_img', 'nms_pre'), _OR_NEVER),
    **dict.fromkeys(('drop_rate', 'drop_path_rate', 'attn_drop_rate'),
                    _SHARE_BELOW_1),
    # heads of mmsegmentation write -1 for none
    dropout_ratio=Demand(lambda value: not isinstance(value, Real) or
                         _is_number(value, below=1), 'a number below 1'),
    **dict.fromkeys(('pad_value', 'pad_val', 'seg_pad_val', 'mask_pad_value'),
                    _NUMBER),
    std=Demand(
        lambda value: not isinstance(value, (list, tuple)) or all(
            _is_number(each) and each > 0 for each in value),
        'numbers above 0, as pixels are divided by them'),
    pad_size_divisor=_COUNT,
    class_weight=Demand(
        lambda value: not isinstance(value, (list, tuple)) or all(
            _is_number(each, 0) for each in value),
        'numbers of 0 or more: a loss of a negative weight is made larger'),
    loss_weight=Demand(
        lambda value: not isinstance(value, (bool, Real)) or
        (0 <= value < float('inf') and not isinstance(value, bool)),
        'a number, 0 or more: a loss of a negative weight is made larger'))
OF_SETS = dict(
    pipeline=Demand(
        lambda value: isinstance(value, (list, tuple)) and len(value) > 0
        and all(isinstance(each, Mapping) or callable(each)
                for each in value),
        'a list of transforms, each a dict with a `type`'),
    times=_COUNT,
    oversample_thr=Demand(lambda value: _is_number(value, 0),
                          'a number, 0 or more'),
    metainfo=Demand(lambda value: isinstance(value, Mapping),
                    'a dict, such as dict(classes=[…])'))
#: Of stages of pipelines.
OF_STAGES = dict(prob=_OVERLAP)
_SHARE = Demand(
    lambda value: isinstance(value, Real) and 0 <= value < float('inf'),
    'a number, 0 or more')
OF_SCHEDULERS = dict(
    dict.fromkeys(('factor', 'end_factor', 'eta_min', 'eta_max',
                   'eta_min_ratio', 'power'), _SHARE),
    gamma=Demand(lambda value: _is_number(value, 0) and value > 0,
                 'a number above 0, as rates are multiplied by it'),
    start_factor=Demand(
        lambda value: isinstance(value, Real) and 0 < value <= 1,
        'a number above 0, and 1 at most'),
    T_max=_COUNT,
    step_size=_COUNT,
    milestones=Demand(
        lambda value: isinstance(value, (list, tuple)) and all(
            map(_ANY_COUNT.holds, value)), 'a list of whole numbers'))
#: Those of mmengine, whose module cannot be imported here.
_PRIORITIES = ('HIGHEST', 'VERY_HIGH', 'HIGH', 'ABOVE_NORMAL', 'NORMAL',
               'BELOW_NORMAL', 'LOW', 'VERY_LOW', 'LOWEST')
OF_HOOKS = dict(
    views=_COUNT,
    clip_grad=Demand(lambda value: not isinstance(value, Real) or value > 0,
                     'a number above 0'),
    optimizer=Demand(
        lambda value: not isinstance(value, Mapping) or value.get('lr') != 0,
        'an `lr` above 0'),
    interval=_OR_NEVER,
    epochs=_ANY_COUNT,
    deals=_COUNT,
    patience=_COUNT,
    min_delta=_NUMBER,
    max_pictures=_COUNT,
    priority=Demand(
        lambda value: str(value).upper() in _PRIORITIES or
        _whole(0, 101).holds(value),
        f'a number from 0 to 100, or one of {", ".join(_PRIORITIES)}')
)
