# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The error of a closed-form head on the other half, row by row."""

import pytest
import torch
from torch import Tensor

from vim_mm.evaluation.ridge import held_out_loss


def problem(num: int = 12, rows: int = 3) -> tuple:
    generator = torch.Generator().manual_seed(0)
    picture = torch.arange(num).repeat_interleave(rows)
    labels = torch.randint(3, (num * rows, ), generator=generator)
    x = torch.randn(num * rows, 5, generator=generator).double()
    return x + labels[:, None], labels + 4, picture


def deal(picture: Tensor, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(int(picture.max()) + 1, generator=generator)
    return (order < len(order) // 2)[picture]


def double(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.double)


def slow(x: Tensor, labels: Tensor, picture: Tensor, first: list,
         l2: float) -> float:
    """Both halves, class by class, with explicit normal equations."""
    halves = [[i for i in range(len(x)) if (int(picture[i]) in first) == side]
              for side in (True, False)]
    classes, total = sorted(set(labels.tolist())), 0.
    for fit, held in (halves, halves[::-1]):
        seen = [c for c in classes if c in labels[fit].tolist()]
        mean, std = x[fit].mean(0), x[fit].std(0, correction=0)
        z, z_held = (x[fit] - mean) / std, (x[held] - mean) / std
        share = {c: (labels[fit] == c).sum() * len(seen) for c in seen}
        weight = double([len(fit) / int(share[int(c)]) for c in labels[fit]])
        target = double([[float(label == c) for c in classes]
                         for label in labels])
        centre = double([(c in seen) / len(seen) for c in classes])
        gram = sum(w * row[:, None] * row for w, row in zip(weight, z))
        moment = sum(w * row[:, None] * (t - centre)
                     for w, row, t in zip(weight, z, target[fit]))
        head = torch.linalg.solve(gram + l2 * 5 * torch.eye(5), moment)
        errors = {c: [] for c in seen}
        for row, index in zip(z_held, held):
            if int(labels[index]) in seen:
                miss = row @ head + centre - target[index]
                errors[int(labels[index])].append(float((miss**2).sum()))
        means = [sum(e) / len(e) for e in errors.values() if e]
        total += sum(means) / len(means) / 2
    return total


@pytest.mark.parametrize('l2', [0.1, 1.])
@pytest.mark.parametrize('lonely', [False, True])
def test_both_halves_against_a_slow_loop(l2: float, lonely: bool) -> None:
    x, labels, picture = problem()
    if lonely:  # a class of one picture: one half never sees it
        labels[:3] = 9
    dealt = torch.stack([deal(picture, seed) for seed in (5, 6)])
    loss = held_out_loss(x, labels, dealt, l2)
    expected = [
        slow(x, labels, picture, picture[half].unique().tolist(), l2)
        for half in dealt
    ]
    assert float(loss) == pytest.approx(sum(expected) / 2, rel=1e-9)


def test_the_gradient_reaches_features_through_the_head() -> None:
    x, labels, picture = problem(6, 2)
    x[:, 2] = 1.  # a constant column, whose deviation has no root's gradient

    def loss(features: Tensor) -> Tensor:
        return held_out_loss(features, labels, deal(picture)[None])

    leaf = x.clone().requires_grad_()
    loss(leaf).backward()
    assert torch.isfinite(leaf.grad).all() and (leaf.grad[:, 2] == 0).all()
    direction = torch.randn(
        x.shape, generator=torch.Generator().manual_seed(1)).double()
    direction[:, 2] = 0
    step = 1e-6
    difference = (loss(x + step * direction) - loss(x - step * direction))
    torch.testing.assert_close((leaf.grad * direction).sum(),
                               difference / (2 * step), rtol=1e-5, atol=1e-9)


def test_classes_that_no_half_shares_count_nothing() -> None:
    x, _, picture = problem(2, 2)
    loss = held_out_loss(x, picture, deal(picture)[None])
    assert float(loss) == 0.
