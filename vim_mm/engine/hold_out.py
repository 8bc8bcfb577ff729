# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""How well features learned from on one half explain the other half."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .transfer_score import ridge_scores


def held_out_loss(x: Tensor,
                  labels: Tensor,
                  halves: Tensor,
                  l2: float = 1.) -> Tensor:
    """Error of a closed-form head on pictures that it was not solved on.

    Each half's ridge head predicts the other. The result is differentiable
    in ``x``.

    Args:
        x (Tensor): Features (n, d).
        labels (Tensor): Class of every row, (n, ), integers.
        halves (Tensor): Booleans (deals, n), see :func:`unlike_halves`.
        l2 (float): Ridge penalty, see :func:`ridge_scores`. Defaults to 1.

    Returns:
        Tensor: Squared error of the one-hot targets, averaged within classes,
        then over classes, halves and deals. A class that only one half shows
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
