# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Halves that look unlike, against a slow reference and by construction."""

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from vim_mm.evaluation.unlike_halves import unlike_halves


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def rows(generator: torch.Generator, each: int = 3, num: int = 12) -> tuple:
    """Pictures of two classes in two surroundings, apart in each of them."""
    picture = torch.arange(num).repeat_interleave(each)
    label = picture % 2
    scene = picture // 2 % 2
    x = torch.randn(len(picture), 6, generator=generator) * 0.1
    x[:, 0] += 9 * label
    x[:, 1:4] += 2. * scene[:, None]
    return x, label, picture, scene.bool()


def same_halves(half: Tensor, expected: Tensor) -> bool:
    return torch.equal(half, expected) or torch.equal(~half, expected)


@pytest.mark.parametrize('each', [1, 3])
def test_the_first_halves_are_the_surroundings_not_the_classes(
        each: int, generator: torch.Generator) -> None:
    x, label, picture, scene = rows(generator, each)
    halves = unlike_halves([x], label, picture, 4)
    assert halves.shape == (4, len(x)) and halves.dtype == torch.bool
    assert same_halves(halves[0], scene)
    # a picture lies in one half, and each half shows both classes
    for half in halves:
        for index in picture.unique():
            assert len(half[picture == index].unique()) == 1
        assert label[half].unique().tolist() == [0, 1]
        assert label[~half].unique().tolist() == [0, 1]


def test_against_a_slow_loop(generator: torch.Generator) -> None:
    """Pictures of several classes: halves of all of them, by scikit-learn."""
    picture = torch.randint(7, (60, ), generator=generator)
    labels = torch.randint(3, (60, ), generator=generator)
    x = torch.randn(60, 4, generator=generator).double() + labels[:, None]
    z = (x - x.mean(0)) / x.std(0, correction=0)
    looks = []
    for index in range(7):
        rest = [row - z[labels == label].mean(0)
                for row, label, p in zip(z, labels, picture) if p == index]
        looks.append(sum(rest) / len(rest))
    axes = PCA(3).fit_transform(torch.stack(looks).numpy())
    halves = unlike_halves([x], labels + 5, picture * 2, 3)
    for axis, half in zip(axes.T, halves):
        order = axis.argsort()
        # the picture in the middle goes with the larger half
        sides = [set(order[:3]), set(order[4:])]
        found = {int(p) for p in picture[half]}
        assert any(side <= found for side in sides)
        assert len(found) == 4 and not all(side & found for side in sides)


def test_classes_are_halved_one_by_one(generator: torch.Generator) -> None:
    labels = torch.tensor([0] * 4 + [1] * 5 + [2] + [3] * 3)
    x = torch.randn(13, 5, generator=generator)
    for half in unlike_halves([x], labels, torch.arange(13), 3):
        # what is left over goes to either half in turn
        assert [int(half[labels == c].sum()) for c in range(4)] == [2, 3, 0, 2]


def test_axes_are_those_that_pictures_have(generator: torch.Generator) -> None:
    """Ten pictures of five classes differ from their class in five ways."""
    x = torch.randn(10, 40, generator=generator)
    labels, picture = torch.arange(10) % 5, torch.arange(10)
    assert len(unlike_halves([x], labels, picture, 99)) == 5
    assert len(unlike_halves([x[:, :2]], labels, picture, 99)) == 2
    assert len(unlike_halves([x[:, :1] * 0], labels, picture, 99)) == 1


def test_several_features_deal_together(generator: torch.Generator) -> None:
    x, label, picture, scene = rows(generator)
    noise = torch.randn(x.shape, generator=generator) * 1e-3
    other = torch.randn(x.shape, generator=generator)
    halves = unlike_halves([x, x + noise, x - noise], label, picture, 1)
    assert same_halves(halves[0], scene)
    # order and units do not matter
    both = unlike_halves([x, other], label, picture, 4)
    assert torch.equal(
        both, unlike_halves([other * 100 + 7, x], label, picture, 4))
    assert not torch.equal(both, unlike_halves([x], label, picture, 4))


def test_the_same_features_are_dealt_alike(generator: torch.Generator) -> None:
    x, label, picture, _ = rows(generator)
    assert torch.equal(
        unlike_halves([x], label, picture, 4),
        unlike_halves([x.requires_grad_()], label, picture, 4))


def test_features_that_are_not_finite_are_a_sentence() -> None:
    x = torch.randn(6, 3)
    x[2, 1] = float('nan')
    with pytest.raises(ValueError, match='not finite. Check the weights'):
        unlike_halves([x], torch.arange(6) % 2, torch.arange(6), 4)


def test_one_picture_has_no_halves() -> None:
    with pytest.raises(ValueError, match='into halves, but there is 1; use'):
        unlike_halves([torch.randn(3, 2)], torch.arange(3), torch.zeros(3), 4)
