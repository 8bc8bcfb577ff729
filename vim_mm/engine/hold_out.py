# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""How well features learned from on one half explain the other half."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .transfer_score import ridge_scores


def held_out_loss(x: Tensor,
                  labels: Tensor,
                  picture: Tensor,
                  generator: torch.Generator,
                  l2: float = 1.) -> Tensor:
    """Error of a closed-form head on pictures that it was not solved on.

    The pictures are dealt into two halves at random; each half's ridge head
    predicts the other. The result is differentiable in ``x``.

    Args:
        x (Tensor): Features (n, d).
        labels (Tensor): Class of every row, (n, ), integers.
        picture (Tensor): Picture of every row, (n, ), integers.
        generator (torch.Generator): Deals the pictures.
        l2 (float): Ridge penalty, see :func:`ridge_scores`. Defaults to 1.

    Returns:
        Tensor: Squared error of the one-hot targets, averaged within classes,
        then over classes and halves. A class that only one half shows counts
        nothing.

    Raises:
        ValueError: If there are fewer pictures than two.
    """
    pictures = picture.unique()
    if len(pictures) < 2:
        raise ValueError('Half of the pictures are to be held out, but there '
                         f'is {len(pictures)}; use larger or more batches.')
    x = x.double()
    classes, y = labels.unique(return_inverse=True)
    onehot = F.one_hot(y, len(classes)).double()
    deal = torch.randperm(len(pictures), generator=generator)
    first = torch.isin(picture, pictures[deal[:len(pictures) // 2]])
    losses = []
    for held in (first, ~first):
        scores = ridge_scores(x[~held], onehot[~held], x[held], l2)
        error = (scores - onehot[held]).square().sum(1)
        seen = onehot[~held].sum(0) > 0
        counts = onehot[held].sum(0).clamp(min=1)
        weight = (onehot[held] * seen / counts).sum(1)
        losses.append((weight * error).sum() / weight.sum().clamp(min=1))
    return sum(losses) / 2
