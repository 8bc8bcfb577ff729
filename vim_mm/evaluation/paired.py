# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Scores that are compared on the same images, and the noise of that."""

from typing import Callable, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

from .unlike_halves import group_sum


class HeldOut(NamedTuple):
    """A score, and what each image adds to it.

    Attributes:
        value (float): The score; larger is better.
        parts (Tensor): Of each image, how far the score lies from that of
            images that all do as well as the mean: their sum is zero, and
            their squares add up to the score's variance.
    """
    value: float
    parts: Tensor


def of_groups(value: Tensor, parts: Tensor, group: Tensor) -> HeldOut:
    """A score of rows, whose rows of one image stand and fall together.

    Args:
        value (Tensor): The score.
        parts (Tensor): What each row adds, (n, ).
        group (Tensor): Image of every row, (n, ), integers.
    """
    _, place = group.unique(return_inverse=True)
    return HeldOut(
        float(value), group_sum(parts[:, None].double(), place)[:, 0])


def averaged(scores: Sequence[HeldOut]) -> HeldOut:
    """The mean of scores of the same images."""
    values, parts = zip(*scores)
    return HeldOut(sum(values) / len(values), torch.stack(parts).mean(0))


def jackknife(measure: Callable[[Sequence[int]], float], num: int) -> HeldOut:
    """A score of images as a whole, and what it is without each of them.

    Args:
        measure (Callable): Gives the score of some of them.
        num (int): Their number.
    """
    value = measure(range(num))
    without = torch.tensor([
        measure([i for i in range(num) if i != left]) for left in range(num)
    ], dtype=torch.double)
    return HeldOut(value, (without.mean() - without) * (num - 1) / num)


def gain(new: HeldOut, old: HeldOut) -> Tuple[float, float]:
    """By how much one score is larger than another of the same images.

    Returns:
        tuple[float, float]: The difference, and its standard error, in which
        cancels out what makes an image easy or hard for both.
    """
    parts = new.parts - old.parts
    num = len(parts)
    variance = parts.square().sum() * num / max(1, num - 1)
    return new.value - old.value, float(variance.sqrt())
