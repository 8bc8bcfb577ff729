# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Average precision of boxes, image by image."""

from typing import Dict, NamedTuple, Sequence

import numpy as np
from numpy import ndarray


class Found(NamedTuple):
    """Boxes of one class in one image.

    Attributes:
        scores (ndarray): Of the predicted ones, (m, ).
        right (ndarray): Which of them match a true one, (m, ).
        counted (ndarray): Which of them count, and do not match a region that
            is to be ignored, (m, ).
        num_true (int): True ones.
    """
    scores: ndarray
    right: ndarray
    counted: ndarray
    num_true: int


#: of one image, by class
Matched = Dict[int, Found]


def match(boxes: ndarray, scores: ndarray, labels: ndarray, true: ndarray,
          true_labels: ndarray, ignored: ndarray) -> Matched:
    """Match predicted boxes to true ones at an overlap of one half.

    Args:
        boxes (ndarray): Predicted, (m, 4).
        scores (ndarray), labels (ndarray): Of these, (m, ).
        true (ndarray): (n, 4).
        true_labels (ndarray): Of these, (n, ).
        ignored (ndarray): Regions where nothing counts, (k, 4).
    """
    # it takes seconds to import
    from mmdet.evaluation.functional.mean_ap import tpfp_default
    matched = {}
    for label in np.union1d(labels, true_labels):
        own = labels == label
        found = np.concatenate([boxes[own], scores[own, None]], axis=1)
        truth = true[true_labels == label]
        right, wrong = tpfp_default(
            found.astype(np.float32), truth.astype(np.float32),
            ignored.astype(np.float32), 0.5)
        matched[int(label)] = Found(scores[own], right[0] > 0,
                                    (right + wrong)[0] > 0, len(truth))
    return matched


def ap50(images: Sequence[Matched]) -> float:
    """Mean over classes of the area under precision and recall; 0 of none.

    Args:
        images (Sequence[Matched]): What was found in each.
    """
    from mmdet.evaluation.functional.mean_ap import average_precision
    areas = []
    for label in sorted(set().union(*images)):
        parts = [image[label] for image in images if label in image]
        num_true = sum(part.num_true for part in parts)
        if not num_true:
            continue
        scores, right, counted = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ('scores', 'right', 'counted'))
        order = np.argsort(-scores, kind='stable')
        order = order[counted[order]]
        hits = np.cumsum(right[order])
        areas.append(
            float(
                average_precision(hits / num_true,
                                  hits / np.arange(1, len(hits) + 1))))
    return sum(areas) / len(areas) if areas else 0.
