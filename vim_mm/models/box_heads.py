# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Whether losses of boxes get boxes, or the numbers that make them."""

import logging
import re
from numbers import Real
from typing import Any, Mapping

from mmengine.logging import print_log
from torch import nn

from vim_mm.utils.settings import dicts

#: Losses that compare boxes by their corners.
_OF_CORNERS = re.compile('IoULoss')
#: Heads that ask `reg_decoded_bbox`, and the method that does.
_ASKS = dict(AnchorHead='loss_by_feat_single', BBoxHead='loss_and_target')


def check_box_losses(model: nn.Module) -> None:
    """Refuse an overlap of what is no box, as mmdet counts it by default.

    Between deltas it is below zero without end.

    Args:
        model (nn.Module): A model, not wrapped.

    Raises:
        ValueError: If a head has such a loss, without ``reg_decoded_bbox``.
    """
    for name, head in model.named_modules():
        decodes = getattr(head, 'reg_decoded_bbox', None)
        loss = type(getattr(head, 'loss_bbox', None)).__name__
        if decodes is None or not _asks(head):
            continue
        corners = bool(_OF_CORNERS.search(loss))
        if corners and not decodes:
            raise ValueError(
                f'`model.{name}.loss_bbox` is a {loss}, which compares boxes, '
                'and gets the deltas of a coder; set '
                f'`model.{name}.reg_decoded_bbox=True`.')
        if decodes and loss.endswith('L1Loss'):
            print_log(
                f'`model.{name}.loss_bbox` is a {loss} of boxes in pixels '
                '(`reg_decoded_bbox=True`), which is large; deltas are what '
                'it is made for.',
                logger='current',
                level=logging.WARNING)


def check_smallest(model: nn.Module, data: Any) -> None:
    """Refuse a smallest size of boxes that no box of an image can have.

    Args:
        model (nn.Module): A model, not wrapped.
        data: A batch as the loader gives it.

    Raises:
        ValueError: If it is that of the images, or more.
    """
    images = data.get('inputs') if isinstance(data, Mapping) else None
    if not isinstance(images, (list, tuple)) or not images:
        return
    side = max(min(image.shape[-2:]) for image in images)
    for name in ('train_cfg', 'test_cfg'):
        for where, cfg in dicts(f'model.{name}', getattr(model, name, None)):
            size = cfg.get('min_bbox_size')
            if isinstance(size, Real) and size >= side:
                raise ValueError(
                    f'`{where}.min_bbox_size` is {size}, and no image of a '
                    f'batch is wider and higher than {side} px, so no box is '
                    'left; lower it.')


def _asks(head: nn.Module) -> bool:
    """Whether a head is one that decodes by that setting, and no other way."""
    for kind in type(head).__mro__:
        method = _ASKS.get(kind.__name__)
        if method is not None:
            return getattr(type(head), method) is getattr(kind, method)
    return False
