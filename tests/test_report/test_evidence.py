# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""How well scores agree with measured usefulness."""

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Callable, List

import pytest

from vim_mm.features.module_rows import FUSED, TRUNK, UNIFORM
from vim_mm.report.evidence import agreement, usefulness


def row(step: str, method: str, value: float) -> dict:
    return dict(step=step, task='t', method=method, metric='mIoU',
                value=value, n_train=1, n_test=1, seconds=1., peak_mb=1.)


ROWS = [
    row('midstream_x', 'with the module', .9),
    row('few_seg', TRUNK, .1),
    row('few_seg', 'single: a', .3),
    row('few_seg', 'single: b', .2),
    row('few_seg', 'single: a', .5),
    row('few_seg', 'uniform gates', .6),
    row('few_cls', 'single: a', .7),
]


def write(folder: Path, rows: object) -> Path:
    path = folder / 'report.json'
    path.write_text(json.dumps(rows))
    return path


def test_the_step_of_a_config_is_found(tmp_path: Path) -> None:
    metric, found = usefulness(write(tmp_path, ROWS), 'few_seg')
    # runs of one method are averaged
    assert metric == 'mIoU'
    assert found == {TRUNK: .1, 'a': pytest.approx(.4), 'b': .2, UNIFORM: .6}


def test_what_is_no_evidence_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    for step in ('few_det', 'midstream_x'):
        with pytest.raises(ValueError, match="steps .'few_cls', 'few_seg', "):
            usefulness(path, step)
    for content in ([1, 2], [dict(step='few_seg')], dict(a=1), 'text', 3):
        with pytest.raises(ValueError, match='is no report.json'):
            usefulness(write(tmp_path, content), 'few_seg')
    path.write_text('{')
    with pytest.raises(ValueError, match='is no report.json'):
        usefulness(path, 'few_seg')
    with pytest.raises(FileNotFoundError):
        usefulness(tmp_path / 'none.json', 'few_seg')


def slow_tau(first: List[float], second: List[float],
             weight: Callable[[int, int], float]) -> float:
    """Weighted tau-b: pairs in the same order less those in the other."""

    def product(x: List[float], y: List[float]) -> float:
        return sum(
            weight(i, j) * math.copysign(1, x[i] - x[j]) *
            math.copysign(1, y[i] - y[j]) * (x[i] != x[j]) * (y[i] != y[j])
            for i, j in combinations(range(len(x)), 2))

    return product(first, second) / math.sqrt(
        product(first, first) * product(second, second))


def test_tau_against_pairs() -> None:
    truth = dict(zip('abcdef', [.5, .9, .1, .4, .8, .3]))
    truth.update({TRUNK: 1., 'unranked': 2.})
    values = dict(zip('abcdef', [3, 7, 4, 5, 9, 1]))
    scores = {
        name: dict(good=truth[name], bad=-truth[name], some=value, flat=1)
        for name, value in values.items()
    }
    scores[TRUNK] = dict(good=9, bad=9, some=99, flat=1)
    scores['unknown'] = dict(good=9, bad=9, some=99, flat=1)
    found = agreement(scores, truth)
    assert list(found) == ['good', 'bad', 'some', 'flat']
    assert found['good'].modules == list('abcdef')
    taus = [(found[kind].tau, found[kind].weighted_tau)
            for kind in ('good', 'bad')]
    assert taus == [pytest.approx((1, 1)), pytest.approx((-1, -1))]
    assert (found['good'].top, found['good'].regret) == ('b', 0)
    assert (found['bad'].top, found['bad'].regret) == ('c', .9 - .1)
    assert (found['some'].top, found['some'].regret) == ('e', .9 - .8)
    assert math.isnan(found['flat'].tau)

    x = list(values.values())
    y = [truth[name] for name in values]
    assert found['some'].tau == pytest.approx(
        slow_tau(x, y, lambda i, j: 1.))

    def by_rank(order: List[float]) -> float:
        """A pair weighs the sum of 1 / (1 + rank) of both."""
        rank = [sorted(order, reverse=True).index(v) for v in order]
        return slow_tau(
            x, y, lambda i, j: 1 / (1 + rank[i]) + 1 / (1 + rank[j]))

    assert found['some'].weighted_tau == pytest.approx(
        (by_rank(x) + by_rank(y)) / 2)
    # mistakes among the best weigh more
    assert found['some'].weighted_tau != pytest.approx(found['some'].tau)


def test_the_trunk_and_fusions_count_as_a_whole() -> None:
    truth = {TRUNK: .1, 'a': .3, 'b': .2, UNIFORM: .4, FUSED: .5}
    scores = {name: dict(s=value) for name, value in truth.items()}
    assert agreement(scores, truth)['s'].modules == ['a', 'b']
    whole = agreement(scores, truth, whole=True)['s']
    assert whole.modules == list(truth)
    assert (whole.weighted_tau, whole.top) == (pytest.approx(1), FUSED)


def test_an_order_takes_two() -> None:
    scores = {TRUNK: dict(s=1.), 'a': dict(s=2.), 'b': dict(s=3.)}
    with pytest.raises(ValueError, match=r"1 modules in common \(\['a'\]\)"):
        agreement(scores, {'a': 1., 'c': 2., TRUNK: 0.})
