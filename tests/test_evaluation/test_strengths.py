# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Modules enter one by one, at strengths, while that is more than noise."""

from typing import Callable

import pytest

from vim_mm.evaluation.strengths import (Gain, Search, bare, plain_settings,
                                         single, uniform)


def search(num: int, truth: Callable, noise: float = 0.,
           most: int = 99) -> Search:
    return Search(num, min(most, num), truth,
                  lambda a, b: Gain(truth(a) - truth(b), noise))


def near(*target: float) -> Callable:
    """A score that is best at one setting."""
    return lambda weights: 1 - sum(
        abs(w - t) for w, t in zip(weights, target))


@pytest.mark.parametrize('target', [
    (0., 0., 0., 0.), (1., 0., 0., 0.), (0., 0., .5, 0.), (0., .25, 0., 0.),
    (0., 0., 0., .1), (1., 0., .25, 0.), (0., 1., 1., 0.), (.5, 0., .5, .25)
])
def test_the_best_setting_is_found(target: tuple) -> None:
    finalists = search(4, near(*target)).finalists()
    assert max(finalists, key=near(*target)) == target


def test_what_is_always_looked_at() -> None:
    tried = []

    def score(weights: tuple) -> float:
        tried.append(weights)
        return -sum(weights)

    finalists = Search(3, 3, score, lambda *_: Gain(-1, 0)).finalists()
    assert tried[:5] == plain_settings(3, 3) == [
        bare(3), *(single(3, i) for i in range(3)), uniform(3)
    ]
    assert len(set(tried)) == len(tried)  # each once
    assert finalists[0] == bare(3)
    assert {single(3, 0), uniform(3)} <= set(finalists)


@pytest.mark.parametrize('num', [1, 2, 4, 8, 16])
@pytest.mark.parametrize('likes', [lambda w: sum(w), lambda w: -sum(w),
                                   lambda w: len(set(w))])
def test_settings_are_few(num: int, likes: Callable) -> None:
    made = search(num, likes)
    made.finalists()
    assert len(made.scores) <= 8 + 4 * num


def test_nothing_enters_for_less_than_its_noise() -> None:
    truth = near(0., 1., .5)
    quiet, loud = (search(3, truth, noise) for noise in (.01, 3.))
    assert (0., 1., .5) in quiet.finalists()
    assert {sum(map(bool, each)) for each in loud.finalists()} == {0, 1, 3}


@pytest.mark.parametrize('most', [1, 2])
def test_no_more_enter_than_a_fusion_can_weigh(most: int) -> None:
    finalists = search(3, sum, most=most).finalists()
    assert max(sum(map(bool, each)) for each in finalists) == most
    assert uniform(3) not in finalists
