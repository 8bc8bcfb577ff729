# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A detector whose graph ends in boxes: the decoder with ONNX's own NMS."""

from typing import Any, Dict, Tuple

import torch
from mmdet.models.detectors import SingleStageDetector
from mmengine.model import BaseModel
from torch import Tensor
from torch.autograd import Function
from torchvision.ops import nms

from .graphs import Detector

#: No limit on the boxes of an image.
NO_LIMIT = 2**31 - 1


class BoxDetector(Detector):
    """The boxes of every image, best first.

    ``bboxes`` (B, N, 4), ``scores`` (B, N) and ``labels`` (B, N); after the
    last box of an image scores are 0 and labels -1. Beside images it takes
    ``size`` (B, 2), their heights and widths without padding.
    """

    inputs = ['image', 'size']
    outputs = ['bboxes', 'scores', 'labels']

    def __init__(self, model: SingleStageDetector) -> None:
        super().__init__(model)
        self.map_names, self.names = self.names, self.outputs
        self.spec = self.about['decoder']
        if self.spec['min_size'] > 0:
            raise ValueError(
                '`test_cfg.min_bbox_size` is above 0, which counts pixels of '
                'the image before it was resized, and a graph does not know '
                'it; export raw maps.')

    def dynamic_axes(self) -> Dict[str, Dict[int, str]]:
        image = {0: 'batch', 2: 'height', 3: 'width'}
        return dict(
            image=image,
            size={0: 'batch'},
            **{name: {
                0: 'batch',
                1: 'boxes'
            }
               for name in self.names})

    def forward(self, image: Tensor, size: Tensor) -> Tuple[Tensor, ...]:
        maps = dict(zip(self.map_names, super().forward(image)))
        levels = [
            self._candidates(maps, index, level)
            for index, level in enumerate(self.spec['levels'])
        ]
        scores, labels, encoded, priors = (
            torch.cat(each, 1) for each in zip(*levels))
        bboxes = self._decode(priors, encoded, size)
        scores = scores * (bboxes[..., 2:] > bboxes[..., :2]).all(-1)
        apart = bboxes
        if not self.spec['class_agnostic']:
            farthest = bboxes.flatten(1).amax(1)[:, None] + 1
            apart = bboxes + (labels * farthest)[..., None]
        kept = _NonMaxSuppression.apply(apart, scores[:, None],
                                        self.spec['iou_thr'])
        best = torch.zeros_like(scores).index_put(
            (kept[:, 0], kept[:, 2]), scores[kept[:, 0], kept[:, 2]])
        scores, order = best.sort(1, descending=True)
        order = order[:, :self.spec['max_per_image']]
        scores = scores[:, :self.spec['max_per_image']]
        labels = labels.gather(1, order)
        return (_rows_at(bboxes, order), scores,
                torch.where(scores > 0, labels, -torch.ones_like(labels)))

    def _candidates(self, maps: Dict[str, Tensor], index: int,
                    level: dict) -> Tuple[Tensor, ...]:
        """The best scores of a level, with their classes, boxes and priors."""
        spec, score_map = self.spec, maps[f'score_{index}']
        scores = _as_rows(score_map, spec['num_scores'])
        if spec['activation'] == 'sigmoid':
            scores = scores.sigmoid()
        else:  # the last class is the background
            scores = scores.softmax(-1)[..., :-1]
        num_classes = scores.shape[2]
        scores = torch.where(scores > spec['score_thr'], scores,
                             torch.zeros_like(scores))
        # sorting takes any number of boxes, where the number for `topk`
        # would be that of the image traced
        scores, order = scores.flatten(1).sort(1, descending=True)
        scores = scores[:, :spec['num_candidates']]
        order = order[:, :spec['num_candidates']]
        rows, labels = order // num_classes, order % num_classes
        if f'factor_{index}' in maps:
            factors = _as_rows(maps[f'factor_{index}'], 1)[..., 0].sigmoid()
            scores = scores * factors.gather(1, rows)
        encoded = _as_rows(maps[f'box_{index}'], 4)
        priors = _priors(level, score_map)[None].expand(
            scores.shape[0], -1, -1)
        return (scores, labels, _rows_at(encoded, rows),
                _rows_at(priors, rows))

    def _decode(self, priors: Tensor, encoded: Tensor,
                size: Tensor) -> Tensor:
        spec = self.spec
        if spec['coder'] == 'distances':
            start = priors - encoded[..., :2]
            end = priors + encoded[..., 2:]
        else:
            encoded = encoded * encoded.new_tensor(spec['stds'])
            encoded = encoded + encoded.new_tensor(spec['means'])
            shift, grow = encoded[..., :2], encoded[..., 2:]
            middle = (priors[..., :2] + priors[..., 2:]) * 0.5
            sides = priors[..., 2:] - priors[..., :2]
            shift, limit = sides * shift, spec['max_ratio']
            if spec['max_shift'] is None:
                grow = grow.clamp(-limit, limit)
            else:
                shift = shift.clamp(-spec['max_shift'], spec['max_shift'])
                grow = grow.clamp(max=limit)
            middle, half = middle + shift, sides * grow.exp() * 0.5
            start, end = middle - half, middle + half
        if spec['clip']:
            border = size.flip(1)[:, None]
            start, end = (
                torch.minimum(side.clamp(min=0), border)
                for side in (start, end))
        return torch.cat([start, end], -1)


def box_graph_of(model: BaseModel) -> BoxDetector:
    """The graph of a detector that ends in boxes.

    Raises:
        ValueError: If it is no single-stage detector, or finds its boxes in
            a way that is not known.
    """
    if not isinstance(model, SingleStageDetector):
        raise ValueError(f'A {type(model).__name__} has no boxes to export; '
                         'they are of single-stage detectors.')
    return BoxDetector(model).eval().requires_grad_(False)


def _as_rows(level: Tensor, channels: int) -> Tensor:
    """Maps (B, A * channels, H, W) as (B, H * W * A, channels)."""
    return level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, channels)


def _rows_at(rows: Tensor, order: Tensor) -> Tensor:
    """Rows (B, N, C) at indices (B, M)."""
    return rows.gather(1, order[..., None].expand(-1, -1, rows.shape[2]))


def _priors(level: dict, like: Tensor) -> Tensor:
    """Anchors (N, 4) or points (N, 2) of all cells, row by row."""
    first = like.new_tensor(level['priors'])
    stride_x, stride_y = level['stride']
    height, width = like.shape[2:]
    y = (torch.arange(height) * stride_y)[:, None].expand(height, width)
    x = (torch.arange(width) * stride_x)[None].expand(height, width)
    shifts = torch.stack([x, y] * (first.shape[1] // 2), -1)
    return (shifts[:, :, None] + first).reshape(-1, first.shape[1])


class _NonMaxSuppression(Function):
    """ONNX's operator, and what it computes for PyTorch."""

    @staticmethod
    def forward(ctx: Any, bboxes: Tensor, scores: Tensor,
                iou_thr: float) -> Tensor:
        """Indices of the boxes (B, N, 4) that stay: image, 0 and box."""
        found = []
        for index, (own, (score, )) in enumerate(zip(bboxes, scores)):
            real = score.nonzero()[:, 0]
            kept = real[nms(own[real], score[real], iou_thr)]
            found.append(
                torch.stack([
                    torch.full_like(kept, index),
                    torch.zeros_like(kept), kept
                ], 1))
        return torch.cat(found)

    @staticmethod
    def symbolic(g: Any, bboxes: Any, scores: Any, iou_thr: float) -> Any:
        """The operator in a graph."""

        def constant(value: Tensor) -> Any:
            return g.op('Constant', value_t=value)

        return g.op('NonMaxSuppression', bboxes, scores,
                    constant(torch.tensor([NO_LIMIT])),
                    constant(torch.tensor([iou_thr])),
                    constant(torch.tensor([0.])))
