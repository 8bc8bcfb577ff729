# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Losses of TDMR and its baselines, of features as tokens (B, L, C)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vim_mm.registry import MODELS
from ..autocast import exact


@MODELS.register_module()
class NormalizedMSE(nn.Module):
    """Squared distance of features of length one, mean over places."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of features (B, L, C), a scalar."""
        with exact(student.device.type):
            student, teacher = (
                F.normalize(x.float(), dim=-1) for x in (student, teacher))
            return (student - teacher).square().sum(-1).mean()


@MODELS.register_module()
class AFTLoss(nn.Module):
    """Adaptive feature transfer (arXiv 2406.07337), written from its formula.

    The root mean squared difference of two linear kernels, of the student's
    features and of the teacher's, which a learned sigmoid weighs channel by
    channel. Rows are centred and then have length one. Widths may differ.

    Args:
        channels (int): Of the teacher.
    """

    any_width = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(channels))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of features (B, L, C) and (B, L, channels), a scalar."""
        with exact(student.device.type):
            ours = _kernel(student)
            theirs = _kernel(teacher * self.weights.sigmoid())
            # a root has no gradient at 0
            return (ours - theirs).square().mean().clamp(min=1e-12).sqrt()


@MODELS.register_module()
class MMD(nn.Module):
    """Squared maximum mean discrepancy, with a Gaussian kernel.

    The kernel's width is the median distance of the rows of both.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of features (B, L, C) of equal width, a scalar.

        Raises:
            ValueError: If the widths differ.
        """
        if student.shape[-1] != teacher.shape[-1]:
            raise ValueError(
                f'MMD compares features of one width, and these have '
                f'{student.shape[-1]} and {teacher.shape[-1]} channels; set '
                '`proxy.channels` to the first, or take vim_mm.LinearCKA.')
        with exact(student.device.type):
            rows = torch.cat(
                [x.flatten(0, -2).float() for x in (student, teacher)])
            squares = torch.cdist(rows, rows).square()
            width = squares.detach().median().clamp(min=1e-6)
            kernel = (-squares / width).exp()
            num = student.shape[:-1].numel()
            return (kernel[:num, :num].mean() + kernel[num:, num:].mean() -
                    2 * kernel[:num, num:].mean())


def _kernel(features: Tensor) -> Tensor:
    rows = features.flatten(0, -2).float()
    rows = F.normalize(rows - rows.mean(0), dim=-1)
    return rows @ rows.T
