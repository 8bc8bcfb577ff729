# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Average precision of boxes, by hand and beside the library's own."""

import numpy as np
import pytest

from vim_mm.evaluation.boxes import ap50, match


def boxes(*corners: float) -> np.ndarray:
    return np.array([[x, 0, x + 10, 10] for x in corners]).reshape(-1, 4)


def image(found: tuple, scores: tuple, true: tuple, label: int = 0,
          ignored: tuple = ()) -> dict:
    labels = np.full(len(found), label), np.full(len(true), label)
    return match(
        boxes(*found), np.array(scores), labels[0], boxes(*true), labels[1],
        boxes(*ignored))


def test_by_hand() -> None:
    assert ap50([image((0, 100), (.9, .8), (0, 100))]) == 1
    assert ap50([image((), (), (0, ))]) == 0
    assert ap50([image((0, ), (.9, ), ())]) == 0  # nothing was there
    # one wrong box above the only right one
    assert ap50([image((50, 0), (.9, .8), (0, ))]) == .5
    # the same, in a region where nothing counts
    assert ap50([image((50, 0), (.9, .8), (0, ), ignored=(50, ))]) == 1
    # half of the true ones, and two classes
    half = image((0, ), (.9, ), (0, 100), label=3)
    assert ap50([half]) == .5
    assert ap50([half, image((0, ), (.1, ), (0, ))]) == .75


def test_beside_mmdet() -> None:
    from mmdet.evaluation.functional import eval_map
    random = np.random.default_rng(0)
    images, results, annotations = [], [], []
    for _ in range(6):
        true = random.uniform(0, 60, (4, 2))
        true = np.concatenate([true, true + 15], 1)
        found = np.concatenate([true + random.normal(0, 3, true.shape),
                                random.uniform(0, 30, (3, 4)) +
                                [0, 0, 30, 30]])
        labels, own = random.integers(2, size=4), random.integers(2, size=7)
        own[:3] = labels[:3]
        scores = random.uniform(size=7)
        images.append(
            match(found, scores, own, true, labels, np.zeros((0, 4))))
        results.append([
            np.c_[found, scores][own == c].astype(np.float32)
            for c in range(2)
        ])
        annotations.append(
            dict(bboxes=true.astype(np.float32), labels=labels))
    expected, _ = eval_map(results, annotations, iou_thr=.5, nproc=1,
                           logger='silent')
    assert 0 < expected < 1
    assert ap50(images) == pytest.approx(expected, rel=1e-5)
