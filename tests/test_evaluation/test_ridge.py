# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The closed-form score against scikit-learn and by hand."""

import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor

from vim_mm.evaluation.ridge import (balanced_accuracy, held_out_score,
                                     held_out_scores, ridge, ridge_scores)
from vim_mm.evaluation.unlike_halves import unlike_halves


@pytest.mark.parametrize('shape', [(30, 5), (5, 30)])
def test_ridge_is_that_of_scikit_learn(shape: tuple) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(shape).double(), torch.randn(shape[0], 3).double()
    weight = torch.rand(shape[0]).double()
    expected = Ridge(alpha=2., fit_intercept=False).fit(
        x, y, sample_weight=weight.numpy()).coef_.T
    torch.testing.assert_close(
        ridge(x, y, weight, 2.), torch.from_numpy(expected))


def test_balanced_accuracy_is_that_of_scikit_learn() -> None:
    torch.manual_seed(0)
    prediction, target = torch.randint(0, 3, (2, 40))
    assert balanced_accuracy(prediction, target) == pytest.approx(
        balanced_accuracy_score(target, prediction))


def data(noise: float, num: int = 60) -> tuple:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num) % 7 % 3
    x = torch.eye(3)[labels] * 100 + 5
    x = x + noise * 100 * torch.randn(num, 3, generator=generator)
    return x, labels


def halves(num: int, deals: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.stack([
        torch.randperm(num, generator=generator) < num // 2
        for _ in range(deals)
    ])


def test_separable_features_score_one_and_noise_scores_chance() -> None:
    assert held_out_score(*data(0.01), halves(60)) == 1.
    x, labels = data(0.01)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert abs(held_out_score(noise, labels, halves(60)) - 1 / 3) < 0.2
    assert held_out_score(*data(.01), halves(60)) > held_out_score(
        *data(1.), halves(60)) > 0.4


def test_the_score_against_a_slow_loop() -> None:
    """Recall by recall, counted by hand; class 9 is in one half only."""
    x, labels = data(0.8)
    labels[0] = 9
    dealt = halves(60)
    values = []
    for half in dealt.tolist():
        right, total = {}, {}
        for side in (True, False):
            fit = [i for i in range(60) if half[i] != side]
            held = [i for i in range(60) if half[i] == side]
            classes = labels.unique()
            onehot = (labels[:, None] == classes).double()
            scores = ridge_scores(x[fit].double(), onehot[fit],
                                  x[held].double(), 1.)
            for row, i in zip(scores, held):
                label = int(labels[i])
                total[label] = total.get(label, 0) + 1
                right[label] = right.get(label, 0) + int(
                    classes[row.argmax()] == label)
        values.append(sum(right[c] / total[c] for c in range(3)) / 3)
    expected = sum(values) / len(values)
    assert held_out_score(x, labels, dealt) == pytest.approx(expected)


def test_features_are_compared_on_the_same_halves() -> None:
    (x, labels), picture = data(.5), torch.arange(60)
    rows = {n: (x * f, labels, picture) for n, f in (('a', 1.), ('b', -3.))}
    rows['c'] = data(1.)[0], labels, picture
    together = unlike_halves([x for x, *_ in rows.values()], labels, picture,
                             4)
    scores = held_out_scores(rows, 4)
    assert scores['a'] == pytest.approx(scores['b'])
    assert scores['a'] > scores['c']
    assert scores['c'] == held_out_score(rows['c'][0], labels, together)


@pytest.mark.parametrize('lonely', [0, 1])
def test_a_deal_that_shares_one_class_does_not_count(lonely: int) -> None:
    """One class alone is never mistaken, whatever the features."""
    x, labels = data(0.5)
    apart = (labels == 0)[None].clone()
    apart[0, (labels == 1).nonzero()[:lonely, 0]] = True
    keep = labels != 2
    x, labels, apart = x[keep], labels[keep], apart[:, keep]
    dealt = halves(int(keep.sum()))
    assert held_out_score(x, labels, torch.cat([apart, dealt])) == \
        held_out_score(x, labels, dealt)
    with pytest.raises(ValueError, match='2 classes, 43 .*fewer than two'):
        held_out_score(x, labels, apart)
