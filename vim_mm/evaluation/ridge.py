# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Closed-form ridge scores of frozen features for a few-shot task.

Labels of rows are classes, (n, ), or where a row may have several, or none,
a column for each class, (n, c).
"""

from typing import Dict, List, Mapping, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .paired import HeldOut, averaged, of_groups
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


def targets(labels: Tensor) -> Tuple[Tensor, bool]:
    """What a head regresses to.

    Args:
        labels (Tensor): Classes (n, ), or a column for each class, (n, c).

    Returns:
        tuple[Tensor, bool]: A column for each class that occurs, (n, c), and
        whether each row has exactly one.
    """
    if labels.dim() == 1:
        classes, y = labels.unique(return_inverse=True)
        return F.one_hot(y, len(classes)).double(), True
    onehot = labels.double()
    # a class that all rows have, or none has, tells nothing apart
    varies = (onehot.amin(0) < onehot.amax(0))
    return onehot[:, varies], False


def held_out_scores(rows: Mapping[str, Tuple[Tensor, Tensor, Tensor]],
                    deals: int = DEALS) -> Dict[str, float]:
    """Scores of features that are compared, all on the same unlike halves.

    Args:
        rows (Mapping[str, tuple]): Name to what :func:`rows_of` gives, of the
            same rows.
        deals (int): Number of splits, see :func:`unlike_halves`. Defaults to
            8.

    Returns:
        dict[str, float]: Name to the value of :func:`held_out_score`.

    Raises:
        ValueError: If the images cannot be split, or not be scored.
    """
    _, labels, pictures = next(iter(rows.values()))
    halves = unlike_halves([x for x, *_ in rows.values()], labels, pictures,
                           deals)
    return {
        name: held_out_score(x, labels, halves, pictures).value
        for name, (x, *_) in rows.items()
    }


def held_out_score(x: Tensor,
                   labels: Tensor,
                   halves: Tensor,
                   picture: Tensor,
                   l2: float = 1.) -> HeldOut:
    """How well a ridge head does on the half it was not fitted on.

    Args:
        x (Tensor): Features (n, d).
        labels (Tensor): Class of every row, (n, ), integers, or a column for
            each class, (n, c).
        halves (Tensor): Booleans (splits, n), see :func:`unlike_halves`.
        picture (Tensor): Image of every row, (n, ), integers.
        l2 (float): Ridge penalty in units of the features' mean squared
            norm after standardising. Defaults to 1.

    Returns:
        HeldOut: Balanced accuracy: recall averaged over the classes that both
        halves show. Of rows with several classes the area under the ROC
        curve, averaged over classes of which both halves show rows with and
        without. Averaged over splits; splits that share fewer than two
        classes (of several labels: one) do not count, since a single class is
        always predicted right.

    Raises:
        ValueError: If the halves of no split share enough.
    """
    x, (onehot, single) = x.double(), targets(labels)
    judge = _recalls if single else _areas
    found: List[HeldOut] = []
    for half in halves:
        scores = onehot.new_empty(onehot.shape)
        for held in (half, ~half):
            scores[held] = ridge_scores(x[~held], onehot[~held], x[held], l2,
                                        single)
        errors = judge(scores, onehot, half)
        if errors is not None:
            found.append(of_groups(*errors, picture))
    if not found:
        raise ValueError('Modules cannot be scored: halves of the images '
                         f'({onehot.shape[1]} classes, {len(onehot)} rows) '
                         'share fewer than two classes; use at least two '
                         'images of each class.')
    return averaged(found)


def _recalls(scores: Tensor, onehot: Tensor, half: Tensor) -> tuple:
    """Balanced accuracy, and what each row adds to it beyond its share."""
    shared = (onehot[half].sum(0) > 0) & (onehot[~half].sum(0) > 0)
    if shared.sum() < 2:
        return None
    y = onehot.argmax(1)
    right = (scores.argmax(1) == y).double()
    weight = shared[y] / (onehot.sum(0)[y] * shared.sum())
    recalls = (onehot * right[:, None]).sum(0) / onehot.sum(0)
    value = recalls[shared].mean()
    return value, weight * (right - recalls[y])


def _areas(scores: Tensor, onehot: Tensor, half: Tensor) -> tuple:
    """Mean area under the ROC curve of classes and halves.

    What a row adds is how much of the other kind it stands apart from, less
    the area (DeLong et al., 1988).
    """
    values, parts = [], onehot.new_zeros(len(onehot))
    for held in (half, ~half):
        for column in range(onehot.shape[1]):
            rows = held.nonzero()[:, 0]
            has = onehot[rows, column] > 0
            fitted = onehot[~held, column]
            if not (0 < has.sum() < len(rows)
                    and 0 < fitted.sum() < len(fitted)):
                continue
            value = scores[rows, column]
            for kind, sign in ((has, 1), (~has, -1)):
                other = (sign * value[~kind]).sort().values
                own = sign * value[kind]
                below = (torch.searchsorted(other, own) + torch.searchsorted(
                    other, own, right=True)) / 2 / len(other)
                parts[rows[kind]] += (below - below.mean()) / len(own)
            values.append(below.mean())
    if not values:
        return None
    return torch.stack(values).mean(), parts / len(values)


def ridge_scores(x: Tensor,
                 onehot: Tensor,
                 x_held: Tensor,
                 l2: float,
                 single: bool = True) -> Tensor:
    """Class scores of held-out rows, of a ridge head on the other rows.

    Args:
        x (Tensor): Features (n, d), standardised inside.
        onehot (Tensor): Their classes (n, c).
        x_held (Tensor): Features (m, d).
        l2 (float): Ridge penalty in units of the features' mean squared
            norm after standardising.
        single (bool): Whether each row has one class. Every class then
            weighs the same, else every row. Defaults to True.

    Returns:
        Tensor: Scores (m, c), differentiable in both kinds of features.
    """
    # the root of a clamped variance has a gradient where columns are constant
    mean = x.mean(0)
    std = x.var(0, correction=0).clamp(min=1e-12).sqrt()
    # in place: memory for a copy more costs as much as the division
    x, x_held = (x - mean).div_(std), (x_held - mean).div_(std)
    weight = onehot.new_ones(len(onehot))
    if single:
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
        labels (Tensor): Class of every row, (n, ), integers, or a column for
            each class, (n, c).
        halves (Tensor): Booleans (splits, n), see :func:`unlike_halves`.
        l2 (float): Ridge penalty, see :func:`ridge_scores`. Defaults to 1.

    Returns:
        Tensor: Squared error of the one-hot targets, averaged within classes,
        then over classes, halves and splits. A class that only one half shows
        counts nothing. Where rows have several classes, it is averaged over
        those that have a class and those that have not, too.
    """
    x, (onehot, single) = x.double(), targets(labels)
    losses = []
    for held in torch.cat([halves, ~halves]):
        fitted, target = onehot[~held], onehot[held]
        scores = ridge_scores(x[~held], fitted, x[held], l2, single)
        error = (scores - target).square()
        seen = fitted.sum(0) > 0
        if single:
            counts = target.sum(0).clamp(min=1)
            weight = (target * seen / counts).sum(1)[:, None]
        else:
            seen &= fitted.sum(0) < len(fitted)
            weight = seen * sum(
                kind / kind.sum(0).clamp(min=1)
                for kind in (target, 1 - target))
        losses.append((weight * error).sum() / weight.sum().clamp(min=1))
    return sum(losses) / len(losses)
