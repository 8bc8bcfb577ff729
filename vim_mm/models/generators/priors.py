# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What makes an image plausible: smooth, not too strong, two nets disagree.

All terms are one number an image, so images of a batch do not depend on each
other. DeepInversion sums over the batch before it takes the norms.
"""

import torch
from torch import Tensor


def total_variation(x: Tensor) -> Tensor:
    """Sum of the L2 norms of four neighbour differences, of each image.

    The neighbours are to the right, below, and on both diagonals.

    Args:
        x (Tensor): Images, (B, C, H, W).

    Returns:
        Tensor: Shape (B, ).
    """
    differences = (x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :],
                   x[..., 1:, 1:] - x[..., :-1, :-1],
                   x[..., 1:, :-1] - x[..., :-1, 1:])
    return sum(norm(difference) for difference in differences)


def norm(x: Tensor) -> Tensor:
    """The L2 norm of each sample, (B, )."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def agreement(logits: Tensor,
              other: Tensor,
              temperature: float = 3.,
              limits: tuple = (0.01, 0.99)) -> Tensor:
    """One minus the Jensen-Shannon divergence of two networks' classes.

    Low where they disagree: adaptive DeepInversion looks for such images.

    Args:
        logits (Tensor): Of one network, (B, K) or (B, K, ...).
        other (Tensor): Of the other, of the same shape.
        temperature (float): Divides both. Defaults to 3.
        limits (tuple[float]): What probabilities are clamped to. Defaults
            to 0.01 and 0.99.

    Returns:
        Tensor: Shape (B, ), from 0 to 1; the mean over positions.
    """
    p, q = ((x / temperature).softmax(1).clamp(*limits)
            for x in (logits, other))
    middle = (p + q) / 2
    divergence = (_kl(p, middle) + _kl(q, middle)) / 2
    return 1 - divergence.flatten(1).mean(1).clamp(0, 1)


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """KL divergence of the classes of logits from those of a target.

    Args:
        logits (Tensor): (B, K) or (B, K, ...).
        target (Tensor): Of the same shape.

    Returns:
        Tensor: Shape (B, ); the mean over positions.
    """
    log_p, log_q = logits.log_softmax(1), target.log_softmax(1)
    apart = (log_p.exp() * (log_p - log_q)).sum(1, keepdim=True)
    return apart.flatten(1).mean(1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(1, keepdim=True)
