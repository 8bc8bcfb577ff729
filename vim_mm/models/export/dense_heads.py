# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a decoder has to know of mmdetection's heads on feature maps."""

from math import log
from typing import Any, List

from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.task_modules.coders import (DeltaXYWHBBoxCoder,
                                              DistancePointBBoxCoder)
from mmdet.models.task_modules.prior_generators import (AnchorGenerator,
                                                        MlvlPointGenerator)
from torch import nn

#: Steps of a prediction that the decoder repeats: a head with steps of its
#: own finds other boxes.
STEPS = ('predict', 'predict_by_feat', '_predict_by_feat_single',
         '_bbox_post_process')
#: Settings of NMS that the decoder knows.
NMS = {'type', 'iou_threshold', 'iou_thr', 'class_agnostic', 'split_thr'}
#: Largest ratio of a box's side to its anchor's, as mmdetection decodes.
MAX_RATIO = 1000 / 16


def decoder_spec(head: nn.Module) -> dict:
    """Plain values by which maps of a head become boxes.

    Args:
        head (nn.Module): The ``bbox_head`` of a single-stage detector.

    Returns:
        dict: ``spec`` of :func:`vim_mm.models.export.decoders.decode`.

    Raises:
        ValueError: If the head finds its boxes in another way.
    """
    name = type(head).__name__
    if not isinstance(head, BaseDenseHead):
        _refuse(name, 'is no head on dense feature maps')
    for step in STEPS:
        if getattr(type(head), step) is not getattr(BaseDenseHead, step):
            _refuse(name, f'has a `{step}` of its own')
    if getattr(head.loss_cls, 'custom_cls_channels', False):
        _refuse(name, f'scores by {type(head.loss_cls).__name__}')
    priors = head.prior_generator
    return dict(
        num_scores=head.cls_out_channels,
        activation='sigmoid' if head.use_sigmoid_cls else 'softmax',
        levels=[
            dict(stride=[float(s) for s in stride], priors=first)
            for stride, first in zip(priors.strides, _first(priors, name))
        ],
        **_coder(head.bbox_coder, name),
        **_test_cfg(head.test_cfg, name))


def _first(priors: Any, head: str) -> List[list]:
    """Anchors, or the point, of the first cell of each level."""
    if type(priors).grid_priors is AnchorGenerator.grid_priors and type(
            priors).single_level_grid_priors is (
                AnchorGenerator.single_level_grid_priors):
        return [level.tolist() for level in priors.base_anchors]
    if type(priors) is MlvlPointGenerator:
        return [[[priors.offset * x, priors.offset * y]]
                for x, y in priors.strides]
    _refuse(head, f'places boxes by {type(priors).__name__}')


def _coder(coder: Any, head: str) -> dict:
    if type(coder) is DistancePointBBoxCoder:
        return dict(coder='distances', clip=bool(coder.clip_border))
    if type(coder) is DeltaXYWHBBoxCoder:
        return dict(
            coder='deltas',
            clip=bool(coder.clip_border),
            means=list(map(float, coder.means)),
            stds=list(map(float, coder.stds)),
            max_ratio=log(MAX_RATIO),
            max_shift=coder.ctr_clamp if coder.add_ctr_clamp else None)
    _refuse(head, f'encodes boxes by {type(coder).__name__}')


def _test_cfg(cfg: dict, head: str) -> dict:
    nms = cfg.get('nms') or {}
    unknown = set(nms) - NMS
    if nms.get('type', 'nms') != 'nms' or unknown or not nms:
        _refuse(head, f'has `test_cfg.nms` {dict(nms)}')
    return dict(
        score_thr=float(cfg.get('score_thr', 0)),
        num_candidates=int(cfg.get('nms_pre', -1)),
        min_size=float(cfg.get('min_bbox_size', -1)),
        iou_thr=float(nms.get('iou_threshold', nms.get('iou_thr', 0.5))),
        class_agnostic=bool(nms.get('class_agnostic', False)),
        max_per_image=int(cfg.get('max_per_img', -1)))


def _refuse(head: str, reason: str) -> None:
    raise ValueError(
        f'The detector cannot be exported: its {head} {reason}, which the '
        'decoder does not know; heads on anchors or points with plain NMS, '
        'such as RetinaHead, ATSSHead, FCOSHead and RTMDetHead, can.')
