# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Whether losses of boxes get boxes, or the numbers that make them."""

import logging
import re
from numbers import Real
from typing import Any, Iterator, Mapping, Sequence, Tuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from vim_mm.utils.messages import short
from vim_mm.utils.settings import dicts

#: Losses that compare boxes by their corners.
_OF_CORNERS = re.compile('IoULoss')
#: Share of its side that a box of a drawn object has outside at most.
_FAR = 0.1
#: Boxes of a batch by which a run is stopped.
_ENOUGH = 4
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
    """Refuse boxes that no image of a batch can have.

    Args:
        model (nn.Module): A model, not wrapped.
        data: A batch as the loader gives it.

    Raises:
        ValueError: If the smallest size of a box is that of the images, or
            more, or most boxes are outside of their images.
    """
    images = data.get('inputs') if isinstance(data, Mapping) else None
    if not isinstance(images, (list, tuple)) or not images:
        return
    _check_inside(images, data.get('data_samples'))
    side = max(min(image.shape[-2:]) for image in images)
    for name in ('train_cfg', 'test_cfg'):
        for where, cfg in dicts(f'model.{name}', getattr(model, name, None)):
            size = cfg.get('min_bbox_size')
            if isinstance(size, Real) and size >= side:
                raise ValueError(
                    f'`{where}.min_bbox_size` is {size}, and no image of a '
                    f'batch is wider and higher than {side} px, so no box is '
                    'left; lower it.')


def _check_inside(images: Sequence[Tensor], samples: Any) -> None:
    """Look for images that were cut or resized without their boxes.

    Boxes that are not clipped (`bbox_clip_border=False`) reach out, too, so
    only those that touch no image are surely wrong.
    """
    gone = outside = total = 0
    example = ''
    for image, boxes, path in _boxes_of(images, samples):
        start, end = boxes.float().split(2, 1)
        limit = start.new_tensor(image.shape[:-3:-1])  # width, height
        out = torch.maximum(end - limit, -start)
        far = (out > _FAR * (end - start)).any(1)
        if far.any() and not example:
            example = (f'{boxes[far][0].tolist()} in {path}, of '
                       f'{image.shape[-1]} x {image.shape[-2]} px')
        outside += int(far.sum())
        gone += int(((end < 0) | (start > limit)).any(1).sum())
        total += len(boxes)
    said = (f'Of {total} boxes of the first batch {outside} reach out of '
            f'their images, {gone} of them lie outside altogether, such as '
            f'{example}: let a stage that cuts or resizes images do so with '
            'their boxes (`gt_bboxes`), and drop those that are outside, '
            'unless `bbox_clip_border=False` is to keep what reaches out.')
    if total >= _ENOUGH and gone > total / 2:
        raise ValueError(said)
    if gone or outside > total / 2:
        print_log(said, logger='current', level=logging.WARNING)


def _boxes_of(images: Sequence[Tensor],
              samples: Any) -> Iterator[Tuple[Tensor, Tensor, str]]:
    """Images that have boxes, the boxes, and where the image is from."""
    pairs = zip(images, samples) if isinstance(samples, (list, tuple)) else ()
    for image, sample in pairs:
        boxes = getattr(sample, 'gt_instances', {}).get('bboxes')
        boxes = getattr(boxes, 'tensor', boxes)
        if isinstance(boxes, Tensor) and boxes.shape[1:] == (4, ):
            yield image, boxes, short(sample.metainfo.get('img_path'))


def _asks(head: nn.Module) -> bool:
    """Whether a head is one that decodes by that setting, and no other way."""
    for kind in type(head).__mro__:
        method = _ASKS.get(kind.__name__)
        if method is not None:
            return getattr(type(head), method) is getattr(kind, method)
    return False
