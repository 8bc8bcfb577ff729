# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Whether places of feature maps lie where heads and padding take them to."""

import logging
from typing import Any, Iterator, List, Optional, Sequence, Tuple

from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor

from .layouts import Streams

Size = Tuple[int, int]


def check_strides(model: BaseModel, levels: Sequence[Tensor],
                  size: Size) -> None:
    """Refuse a detector's head whose strides are not those of its levels.

    Boxes would be learned and looked for elsewhere than objects are.

    Args:
        model (BaseModel): A model, not wrapped.
        levels (Sequence[Tensor]): What its heads read of a blank image.
        size (tuple[int]): Height and width of that image.

    Raises:
        ValueError: If they are not.
    """
    if any(level.dim() != 4 for level in levels):
        return
    for where, strides, of_all in _strides(model):
        if len(strides) > len(levels) or (of_all
                                          and len(strides) < len(levels)):
            raise ValueError(
                f'`{where}` has {len(strides)} strides, and what is before it '
                f'gives {len(levels)} levels; give one for each level.')
        for level, stride in zip(levels, strides):
            sides = tuple(level.shape[-2:])
            if any(abs(side * step - whole) >= max(step, whole / side)
                   for side, step, whole in zip(sides, stride, size)):
                real = [round(whole / side)
                        for side, whole in zip(sides, size)]
                raise ValueError(
                    f'`{where}` has a stride of {stride[0]:g}, and a place of '
                    f'that level stands for {real[0]} px, so boxes would be '
                    'looked for elsewhere than objects are; give its '
                    '`strides` (`featmap_strides`) those of the levels.')


def _strides(model: BaseModel) -> Iterator[Tuple[str, List[tuple], bool]]:
    """Strides of a detector's heads, and whether they are of all levels."""
    for name in ('bbox_head', 'rpn_head'):
        prior = getattr(getattr(model, name, None), 'prior_generator', None)
        found = getattr(prior, 'strides', None)
        if isinstance(found, (list, tuple)):
            yield f'model.{name}', list(map(_pair, found)), True
    roi_head = getattr(model, 'roi_head', None)
    for name in ('bbox_roi_extractor', 'mask_roi_extractor'):
        extractor = getattr(roi_head, name, None)
        found = getattr(extractor, 'featmap_strides', None)
        if isinstance(found, (list, tuple)):
            yield f'model.roi_head.{name}', list(map(_pair, found)), False


def _pair(stride: Any) -> tuple:
    # (width, height)
    return tuple(stride)[::-1] if isinstance(
        stride, (list, tuple)) else (stride, stride)


def check_padding(model: BaseModel, features: Any, size: Size) -> None:
    """Name padding that does not fit the backbone, or would be learned.

    Args:
        model (BaseModel): A model, not wrapped.
        features: What its backbone gives of a blank image.
        size (tuple[int]): Height and width of that image.
    """
    own = getattr(model, 'data_preprocessor', None)
    levels = features[0] if isinstance(features, Streams) else features
    maps = [each for each in levels if isinstance(each, Tensor)
            and each.dim() == 4]
    step = max((round(size[0] / each.shape[-2]) for each in maps), default=1)
    # of mmsegmentation or of the others
    key = 'size_divisor' if hasattr(own, 'size_divisor') \
        else 'pad_size_divisor'
    divisor = getattr(own, key, None)
    if isinstance(divisor, int) and divisor > 1 and divisor % step:
        _warn(f'`data_preprocessor.{key}` is {divisor}, and a place of the '
              f'backbone stands for {step} px, so the last ones of an image '
              f'may be cut or seen in part; give a multiple of {step}.')
    head = getattr(model, 'decode_head', None)
    ignored: Optional[int] = getattr(head, 'ignore_index', None)
    filled = getattr(own, 'seg_pad_val', None)
    if None not in (ignored, filled) and filled != ignored and (
            getattr(own, 'size', None) or getattr(own, 'size_divisor', None)):
        _warn(f'`data_preprocessor.seg_pad_val` is {filled}, and the head '
              f'ignores {ignored}, so padding is learned as a class; give '
              'both the same.')
    test = getattr(model, 'test_cfg', None) or {}
    windows = test.get('mode') == 'slide' and test.get('crop_size')
    trained = getattr(own, 'size', None)
    if windows and trained and tuple(windows) != tuple(trained):
        _warn(f'`test_cfg.crop_size` is {tuple(windows)}, and images of '
              f'training are of `data_preprocessor.size`, {tuple(trained)}: '
              'it is tested on windows of another size than it has learned '
              'from.')


def _warn(said: str) -> None:
    print_log(said, logger='current', level=logging.WARNING)
