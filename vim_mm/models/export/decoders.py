# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Boxes from the raw maps of a detector's ONNX file.

This file needs nothing but NumPy: copy it beside the ONNX file. What it has
to know of the detector is in the file's metadata::

    session = onnxruntime.InferenceSession('detector.onnx')
    meta = session.get_modelmeta().custom_metadata_map
    names = [output.name for output in session.get_outputs()]
    maps = dict(zip(names, session.run(None, {'image': inputs})))
    found = decode(maps, json.loads(meta['decoder']), sizes, scales)
"""

from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

__all__ = ['decode']

Array = np.ndarray


def decode(maps: Dict[str, Array],
           spec: dict,
           sizes: Sequence[Tuple[int, int]],
           scales: Optional[Sequence[Tuple[float, float]]] = None
           ) -> List[Dict[str, Array]]:
    """Boxes of a batch of images, best first, as mmdetection's ``predict``.

    Args:
        maps (dict[str, ndarray]): Outputs of the graph by name: ``score_I``,
            ``box_I`` and, where the detector has it, ``factor_I`` of every
            level I, of shape (B, channels, H, W).
        spec (dict): ``decoder`` of the metadata.
        sizes (Sequence[tuple[int, int]]): Height and width of every image
            without its padding.
        scales (Sequence[tuple[float, float]], optional): By how much width
            and height of every image were multiplied when it was resized;
            boxes are given in the image before. Not at all when None.

    Returns:
        list[dict[str, ndarray]]: ``bboxes`` (N, 4) as x1, y1, x2, y2,
        ``scores`` (N, ) and ``labels`` (N, ) of every image.
    """
    scales = scales or [(1., 1.)] * len(sizes)
    return [
        _decode_one({name: each[index]
                     for name, each in maps.items()}, spec, size, scale)
        for index, (size, scale) in enumerate(zip(sizes, scales))
    ]


def _decode_one(maps: Dict[str, Array], spec: dict, size: Tuple[int, int],
                scale: Tuple[float, float]) -> Dict[str, Array]:
    levels = [
        _candidates(maps, index, level, spec)
        for index, level in enumerate(spec['levels'])
    ]
    scores, labels, encoded, priors = map(np.concatenate, zip(*levels))
    bboxes = _boxes(priors, encoded, spec, size)
    bboxes = bboxes * (1 / np.float32([*scale, *scale]))
    sides = bboxes[:, 2:] - bboxes[:, :2]
    large = (sides > spec['min_size']).all(1) | (spec['min_size'] < 0)
    bboxes, scores, labels = bboxes[large], scores[large], labels[large]
    kept = _suppress(bboxes, scores, labels, spec)[:spec['max_per_image']]
    return dict(bboxes=bboxes[kept], scores=scores[kept], labels=labels[kept])


def _candidates(maps: Dict[str, Array], index: int, level: dict,
                spec: dict) -> Tuple[Array, ...]:
    """The best scores of a level, with their classes, boxes and priors."""
    score_map = maps[f'score_{index}']
    height, width = score_map.shape[-2:]
    scores = _rows(score_map, spec['num_scores'])
    if spec['activation'] == 'sigmoid':
        scores = _sigmoid(scores)
    else:  # the last class is the background
        scores = np.exp(scores - scores.max(1, keepdims=True))
        scores = (scores / scores.sum(1, keepdims=True))[:, :-1]
    rows, labels = np.nonzero(scores > spec['score_thr'])
    scores = scores[rows, labels]
    best = np.argsort(-scores, kind='stable')
    best = best[:min(spec['num_candidates'], len(best))]
    scores, labels, rows = scores[best], labels[best], rows[best]
    if f'factor_{index}' in maps:
        factors = _sigmoid(_rows(maps[f'factor_{index}'], 1))
        scores = scores * factors[rows, 0]
    encoded = _rows(maps[f'box_{index}'], 4)
    priors = _priors(level, height, width)
    return scores, labels, encoded[rows], priors[rows]


def _rows(level: Array, channels: int) -> Array:
    """A map (A * channels, H, W) as (H * W * A, channels)."""
    return level.transpose(1, 2, 0).reshape(-1, channels)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x.clip(-80)))  # no overflow


def _priors(level: dict, height: int, width: int) -> Array:
    """Anchors (N, 4) or points (N, 2) of all cells, row by row."""
    first = np.float32(level['priors'])
    stride_x, stride_y = level['stride']
    y, x = np.meshgrid(
        np.arange(height, dtype=np.float32) * stride_y,
        np.arange(width, dtype=np.float32) * stride_x,
        indexing='ij')
    shifts = np.stack([x, y] * (first.shape[1] // 2), axis=-1)
    return (shifts[:, :, None] + first).reshape(-1, first.shape[1])


def _boxes(priors: Array, encoded: Array, spec: dict,
           size: Tuple[int, int]) -> Array:
    """Boxes of what is encoded relative to priors, inside the image."""
    if spec['coder'] == 'distances':
        start = priors - encoded[:, :2]
        end = priors + encoded[:, 2:]
    else:
        encoded = encoded * np.float32(spec['stds']) + np.float32(
            spec['means'])
        shift, grow = encoded[:, :2], encoded[:, 2:]
        middle = (priors[:, :2] + priors[:, 2:]) * np.float32(0.5)
        sides = priors[:, 2:] - priors[:, :2]
        shift = sides * shift
        limit = np.float32(spec['max_ratio'])
        if spec['max_shift'] is None:
            grow = grow.clip(-limit, limit)
        else:
            shift = shift.clip(-spec['max_shift'], spec['max_shift'])
            grow = grow.clip(None, limit)
        middle = middle + shift
        half = sides * np.exp(grow) * np.float32(0.5)
        start, end = middle - half, middle + half
    bboxes = np.concatenate([start, end], axis=1).astype(np.float32)
    if spec['clip']:
        height, width = size
        bboxes = bboxes.clip(0, np.float32([width, height, width, height]))
    return bboxes


def _suppress(bboxes: Array, scores: Array, labels: Array,
              spec: dict) -> Array:
    """Indices of the boxes that no better one covers, best first."""
    if len(bboxes) and not spec['class_agnostic']:
        # classes lie apart, so that they do not touch
        apart = labels.astype(np.float32) * (bboxes.max() + np.float32(1))
        bboxes = bboxes + apart[:, None]
    areas = np.prod(bboxes[:, 2:] - bboxes[:, :2], axis=1)
    kept, order = [], np.argsort(-scores, kind='stable')
    while len(order):
        best, others = order[0], order[1:]
        kept.append(best)
        sides = np.minimum(bboxes[best, 2:], bboxes[others, 2:]) - np.maximum(
            bboxes[best, :2], bboxes[others, :2])
        common = np.prod(sides.clip(0), axis=1)
        union = areas[best] + areas[others] - common
        # without a division, so that boxes without an area stay
        order = others[~(common > np.float32(spec['iou_thr']) * union)]
    return np.array(kept, dtype=np.int64)
