# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The closed-form score against scikit-learn and by hand."""

from typing import Callable, Optional

import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor

from vim_mm.evaluation.ridge import (balanced_accuracy, held_out_loss,
                                     held_out_score, held_out_scores, ridge,
                                     ridge_scores)
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


def score(x: Tensor, labels: Tensor,
          dealt: Optional[Tensor] = None) -> float:
    """Of rows that are an image each."""
    dealt = halves(len(x)) if dealt is None else dealt
    return held_out_score(x, labels, dealt, torch.arange(len(x))).value


def test_separable_features_score_one_and_noise_scores_chance() -> None:
    assert score(*data(0.01)) == 1.
    x, labels = data(0.01)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert abs(score(noise, labels) - 1 / 3) < 0.2
    assert score(*data(.01)) > score(*data(1.)) > 0.4


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
    assert score(x, labels, dealt) == pytest.approx(expected)


def test_features_are_compared_on_the_same_halves() -> None:
    (x, labels), picture = data(.5), torch.arange(60)
    rows = {n: (x * f, labels, picture) for n, f in (('a', 1.), ('b', -3.))}
    rows['c'] = data(1.)[0], labels, picture
    together = unlike_halves([x for x, *_ in rows.values()], labels, picture,
                             4)
    scores = held_out_scores(rows, 4)
    assert scores['a'] == pytest.approx(scores['b'])
    assert scores['a'] > scores['c']
    assert scores['c'] == score(rows['c'][0], labels, together)


@pytest.mark.parametrize('lonely', [0, 1])
def test_a_deal_that_shares_one_class_does_not_count(lonely: int) -> None:
    """One class alone is never mistaken, whatever the features."""
    x, labels = data(0.5)
    apart = (labels == 0)[None].clone()
    apart[0, (labels == 1).nonzero()[:lonely, 0]] = True
    keep = labels != 2
    x, labels, apart = x[keep], labels[keep], apart[:, keep]
    dealt = halves(int(keep.sum()))
    assert score(x, labels, torch.cat([apart, dealt])) == score(
        x, labels, dealt)
    with pytest.raises(ValueError, match='2 classes, 43 .*fewer than two'):
        score(x, labels, apart)


def several(noise: float, num: int = 60) -> tuple:
    """Images of none to three classes each; nobody has the last."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(num, 4, generator=generator) < .4).float()
    labels[:, 3] = 0
    x = labels @ torch.randn(4, 6, generator=generator)
    return x + noise * torch.randn(num, 6, generator=generator), labels


def test_several_labels_are_scored_class_by_class() -> None:
    """By the area under the curve of scikit-learn."""
    x, labels = several(2.)
    dealt, areas = halves(60), []
    onehot = labels[:, :3]
    for half in dealt:
        for held in (half, ~half):
            scores = ridge_scores(x[~held], onehot[~held], x[held], 1., False)
            areas += [
                roc_auc_score(onehot[held, c], scores[:, c]) for c in range(3)
            ]
    assert .5 < score(x, labels, dealt) < 1
    assert score(x, labels, dealt) == pytest.approx(
        sum(areas) / len(areas), rel=1e-5)
    assert score(*several(.01)) > .99
    assert score(*several(.5)) > score(*several(5.))


@pytest.mark.parametrize('make', [data, several])
def test_noise_is_that_of_other_draws(make: Callable) -> None:
    """The standard error agrees with how scores of other images differ."""
    x, labels = make(1.5, 600)
    values, errors = [], []
    for part in range(10):
        rows = torch.arange(600).view(60, 10)[:, part]
        found = held_out_score(x[rows], labels[rows], halves(60, 1),
                               torch.arange(60))
        values.append(found.value)
        errors.append(float(found.parts.square().sum().sqrt()))
    spread = float(torch.tensor(values).std())
    assert .5 < spread / (sum(errors) / 10) < 2


def test_the_error_of_several_labels_has_a_gradient() -> None:
    x, labels = several(1.)
    x.requires_grad_()
    good = held_out_loss(x, labels, halves(60))
    bad = held_out_loss(torch.randn_like(x), labels, halves(60))
    good.backward()
    assert 0 < good < bad and x.grad.abs().sum() > 0


def test_halves_of_several_labels_show_the_rarest() -> None:
    x, labels = several(1.)
    labels[:, 2] = 0
    labels[[3, 50], 2] = 1
    for half in unlike_halves([x], labels, torch.arange(60), 4):
        assert labels[half, 2].sum() == labels[~half, 2].sum() == 1
