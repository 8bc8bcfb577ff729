# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Closed-form ridge scores of frozen features for a few-shot task."""

from typing import Dict, Mapping, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .unlike_halves import DEALS, unlike_halves


def ridge(x: Tensor, y: Tensor, weight: Tensor, l2: float) -> Tensor:
    """Weighted ridge regression, solved in the smaller of both dimensions.

    ``argmin_W sum_i weight_i |x_i W - y_i|^2 + l2 |W|^2``

    Args:
        x (Tensor): Features (n, d).
        y (Tensor): Targets (n, c).
        weight (Tensor): Weights of the rows, (n, ).
        l2 (float): Strength of the penalty.

    Returns:
        Tensor: W, of shape (d, c).
    """
    root = weight.sqrt()[:, None]
    x, y = x * root, y * root
    n, d = x.shape
    if n < d:
        kernel = x @ x.T + l2 * torch.eye(n, dtype=x.dtype, device=x.device)
        return x.T @ torch.linalg.solve(kernel, y)
    gram = x.T @ x + l2 * torch.eye(d, dtype=x.dtype, device=x.device)
    return torch.linalg.solve(gram, x.T @ y)


def balanced_accuracy(prediction: Tensor, target: Tensor) -> float:
    """Mean recall over the classes that occur in ``target``."""
    recalls = [(prediction[target == c] == c).double().mean()
               for c in target.unique()]
    return float(torch.stack(recalls).mean())


def held_out_scores(rows: Mapping[str, Tuple[Tensor, Tensor, Tensor]],
                    deals: int = DEALS) -> Dict[str, float]:
    """Scores of features that are compared, all on the same unlike halves.

    Args:
        rows (Mapping[str, tuple]): Name to what :func:`rows_of` gives, of the
            same rows.
        deals (int): Number of splits, see :func:`unlike_halves`. Defaults to
            8.

    Returns:
        dict[str, float]: Name to :func:`held_out_score`.

    Raises:
        ValueError: If the images cannot be split, or not be scored.
    """
    _, labels, pictures = next(iter(rows.values()))
    halves = unlike_halves([x for x, *_ in rows.values()], labels, pictures,
                           deals)
    return {
        name: held_out_score(x, labels, halves)
        for name, (x, *_) in rows.items()
    }


def held_out_score(x: Tensor,
                   labels: Tensor,
                   halves: Tensor,
                   l2: float = 1.) -> float:
    """Balanced accuracy of a ridge head on the half it was not fitted on.

    Args:
        x (Tensor): Features (n, d).
        labels (Tensor): Class of every row, (n, ), integers.
        halves (Tensor): Booleans (splits, n), see :func:`unlike_halves`.
        l2 (float): Ridge penalty in units of the features' mean squared
            norm after standardising. Defaults to 1.

    Returns:
        float: Recall averaged over the classes that both halves show, then
        over splits. Splits that share fewer than two classes do not count,
        since a single class is always predicted right.

    Raises:
        ValueError: If the halves of no split share two classes.
    """
    x = x.double()
    classes, y = labels.unique(return_inverse=True)
    onehot = F.one_hot(y, len(classes)).double()
    scores = []
    for half in halves:
        shared = (onehot[half].sum(0) > 0) & (onehot[~half].sum(0) > 0)
        if shared.sum() < 2:
            continue
        prediction = torch.empty_like(y)
        for held in (half, ~half):
            prediction[held] = ridge_scores(x[~held], onehot[~held], x[held],
                                            l2).argmax(1)
        counted = shared[y]
        scores.append(balanced_accuracy(prediction[counted], y[counted]))
    if not scores:
        raise ValueError('Modules cannot be scored: halves of the images '
                         f'({len(classes)} classes, {len(y)} rows) share '
                         'fewer than two classes; use at least two images '
                         'of each class.')
    return sum(scores) / len(scores)


def ridge_scores(x: Tensor, onehot: Tensor, x_held: Tensor,
                 l2: float) -> Tensor:
    """Class scores of held-out rows, of a ridge head on the other rows.

    Args:
        x (Tensor): Features (n, d), standardised inside.
        onehot (Tensor): Their classes (n, c); every class weighs the same.
        x_held (Tensor): Features (m, d).
        l2 (float): Ridge penalty in units of the features' mean squared
            norm after standardising.

    Returns:
        Tensor: Scores (m, c), differentiable in both kinds of features.
    """
    # the root of a clamped variance has a gradient where columns are constant
    mean = x.mean(0)
    std = x.var(0, correction=0).clamp(min=1e-12).sqrt()
    x, x_held = (x - mean) / std, (x_held - mean) / std
    # the total weight is the number of rows
    counts = onehot.sum(0).clamp(min=1)
    weight = (onehot / counts).sum(1)
    weight = weight * len(x) / weight.sum()
    centre = (weight[:, None] * onehot).sum(0) / weight.sum()
    head = ridge(x, onehot - centre, weight, l2 * x.shape[1])
    return x_held @ head + centre


def held_out_loss(x: Tensor,
                  labels: Tensor,
                  halves: Tensor,
                  l2: float = 1.) -> Tensor:
    """Error of a closed-form head on images that it was not fitted on.

    Each half's ridge head predicts the other. The result is differentiable
    in ``x``.

    Args:
        x (Tensor): Features (n, d).
        labels (Tensor): Class of every row, (n, ), integers.
        halves (Tensor): Booleans (splits, n), see :func:`unlike_halves`.
        l2 (float): Ridge penalty, see :func:`ridge_scores`. Defaults to 1.

    Returns:
        Tensor: Squared error of the one-hot targets, averaged within classes,
        then over classes, halves and splits. A class that only one half shows
        counts nothing.
    """
    x = x.double()
    classes, y = labels.unique(return_inverse=True)
    onehot = F.one_hot(y, len(classes)).double()
    losses = []
    for held in torch.cat([halves, ~halves]):
        scores = ridge_scores(x[~held], onehot[~held], x[held], l2)
        error = (scores - onehot[held]).square().sum(1)
        seen = onehot[~held].sum(0) > 0
        counts = onehot[held].sum(0).clamp(min=1)
        weight = (onehot[held] * seen / counts).sum(1)
        losses.append((weight * error).sum() / weight.sum().clamp(min=1))
    return sum(losses) / len(losses)
