# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Differences of scores of the same images, and their noise."""

import pytest
import torch
from scipy.stats import sem

from vim_mm.evaluation.paired import (HeldOut, averaged, gain, jackknife,
                                      of_groups)


def test_the_noise_of_a_mean_is_its_standard_error() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 30).double()
    scores = [
        of_groups(x.mean(), (x - x.mean()) / 30, torch.arange(30))
        for x in (first, second)
    ]
    found = gain(*scores)
    assert found == pytest.approx(
        (float((first - second).mean()), sem(first - second)))
    # what is hard for both is no noise
    shifted = of_groups((first + 1).mean(), (first - first.mean()) / 30,
                        torch.arange(30))
    assert gain(shifted, scores[0]) == pytest.approx((1, 0))


def test_rows_of_one_image_stand_and_fall_together() -> None:
    parts = torch.tensor([1., 1, -1, -1]).double() / 4
    apart, together = (
        of_groups(torch.tensor(0.), parts, torch.tensor(group))
        for group in ([0, 1, 2, 3], [5, 5, 9, 9]))
    none = [of_groups(torch.tensor(0.), 0 * parts, torch.tensor(group))
            for group in ([0, 1, 2, 3], [5, 5, 9, 9])]
    assert gain(together, none[1])[1] > gain(apart, none[0])[1]


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = [3., 1., 4., 1., 5.]
    found = jackknife(
        lambda kept: sum(values[i] for i in kept) / len(kept), 5)
    assert found.value == pytest.approx(2.8)
    assert gain(found, HeldOut(0., 0 * found.parts)) == pytest.approx(
        (2.8, sem(values)))


def test_scores_are_averaged_image_by_image() -> None:
    first = HeldOut(1., torch.tensor([1., -1]))
    second = HeldOut(0., torch.tensor([-1., 1]))
    mean = averaged([first, second])
    assert mean.value == .5 and mean.parts.tolist() == [0, 0]
