# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The published scores against slow and obvious references."""

import sys
from typing import Tuple

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch import Tensor

from vim_mm.evaluation.transferability import h_score, leep, log_me, n_leep

SCORES = [log_me, h_score, n_leep]


def data(num: int = 40, dims: int = 6,
         noise: float = 0.7) -> Tuple[Tensor, Tensor]:
    """Three classes of different sizes, called 2, 5 and 9."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(num, generator=generator) * 5).long().clamp(max=2)
    centres = torch.randn(3, dims, generator=generator)
    x = centres[y] + noise * torch.randn(num, dims, generator=generator)
    return x + 0.5, torch.tensor([2, 5, 9])[y]


def evidence(x: np.ndarray, y: np.ndarray, alpha: float,
             beta: float) -> float:
    """``log p(y)`` of the Gaussian that a linear model makes of y."""
    covariance = np.eye(len(x)) / beta + x @ x.T / alpha
    return multivariate_normal(cov=covariance).logpdf(y)


@pytest.mark.parametrize('shape', [(40, 6), (12, 30), (20, 20)])
def test_log_me_is_the_evidence_at_its_maximum(shape: tuple) -> None:
    x, labels = data(*shape)
    x64 = x.double().numpy()
    best = []
    for c in labels.unique():
        y = (labels == c).double().numpy()
        found = [
            minimize(
                lambda p: -evidence(x64, y, *np.exp(np.clip(p, -25, 25))),
                start,
                method='Nelder-Mead',
                options=dict(xatol=1e-7, fatol=1e-10, maxiter=2000))
            for start in ((0, 0), (5, 2), (-3, 3))
        ]
        best.append(-min(each.fun for each in found) / len(y))
    assert log_me(x, labels) == pytest.approx(np.mean(best), abs=1e-5)


def test_log_me_knows_no_rotation_and_no_scale() -> None:
    x, labels = data()
    turn = torch.linalg.qr(torch.randn(6, 6).double())[0]
    expected = log_me(x, labels)
    assert log_me(x.double() @ turn, labels) == pytest.approx(expected)
    assert log_me(x * 1e4, labels) == pytest.approx(expected, abs=1e-5)
    # features that say nothing cost nothing
    padded = torch.cat([x, torch.zeros(40, 5)], 1)
    assert log_me(padded, labels) == pytest.approx(expected, abs=1e-5)


def reference_h(x: Tensor, labels: Tensor, covariance: np.ndarray) -> float:
    x, labels = x.double().numpy(), labels.numpy()
    given = np.stack([x[labels == c].mean(0) for c in labels])
    given = given - given.mean(0)
    return np.trace(np.linalg.inv(covariance) @ (given.T @ given / len(x)))


def test_h_score_is_the_trace() -> None:
    x, labels = data()
    covariance = np.cov(x.double().numpy().T, bias=True)
    assert h_score(x, labels, shrinkage=0) == pytest.approx(
        reference_h(x, labels, covariance))
    shrunk = .7 * covariance + .3 * np.eye(6) * np.trace(covariance) / 6
    assert h_score(x, labels, shrinkage=.3) == pytest.approx(
        .7 * reference_h(x, labels, shrunk))
    chosen = LedoitWolf().fit(x.double().numpy())
    assert chosen.shrinkage_ > 0.01
    assert h_score(x, labels) == pytest.approx(
        (1 - chosen.shrinkage_) * reference_h(x, labels, chosen.covariance_))


def test_h_score_knows_no_invertible_map() -> None:
    x, labels = data()
    mixed = x.double() @ torch.randn(
        6, 6, generator=torch.Generator().manual_seed(1)).double() + 3
    assert h_score(mixed, labels, 0) == pytest.approx(h_score(x, labels, 0))
    assert h_score(x * 1e4, labels) == pytest.approx(h_score(x, labels))


def test_h_score_needs_shrinkage_on_few_rows() -> None:
    """Without, any features of more dimensions than rows look perfect."""
    x, labels = data(20, 60)
    noise = torch.randn(20, 60, generator=torch.Generator().manual_seed(1))
    assert h_score(noise, labels, 0) == pytest.approx(2, abs=1e-6)
    assert h_score(x, labels, 0) == pytest.approx(2, abs=1e-6)
    assert h_score(x, labels) > h_score(noise, labels) + 0.3


def reference_leep(posterior: np.ndarray, labels: np.ndarray) -> float:
    n, num = posterior.shape
    total = 0.
    for i in range(n):
        expected = 0.
        for z in range(num):
            joint = sum(posterior[j, z] for j in range(n)
                        if labels[j] == labels[i]) / n
            marginal = sum(posterior[j, z] for j in range(n)) / n
            expected += joint / marginal * posterior[i, z]
        total += np.log(expected)
    return total / n


def test_leep_and_n_leep_are_their_loops() -> None:
    x, labels = data()
    posterior = torch.rand(40, 4).double().softmax(1)
    assert leep(posterior, labels) == pytest.approx(
        reference_leep(posterior.numpy(), labels.numpy()))
    low = PCA(0.8, svd_solver='full').fit_transform(x.double().numpy())
    assert 1 < low.shape[1] < 6
    # 40 rows give 8 components, not 5 for each of 3 classes
    mixture = GaussianMixture(
        8, covariance_type='diag', reg_covar=1e-6 * low.var(0, ddof=1).mean(),
        random_state=0).fit(low)  # yapf: disable
    assert n_leep(x, labels) == pytest.approx(
        reference_leep(mixture.predict_proba(low), labels.numpy()))


def test_leep_of_perfect_and_of_useless_clusters() -> None:
    _, labels = data()
    perfect = torch.nn.functional.one_hot(labels, 12).double()
    assert leep(perfect, labels) == 0
    share = labels.unique(return_counts=True)[1] / 40
    useless = torch.full((40, 3), 1 / 3)
    assert leep(useless, labels) == pytest.approx(
        float((share * share.log()).sum()))


@pytest.mark.parametrize('score', SCORES)
def test_better_features_score_higher(score) -> None:
    x, labels = data(90, noise=0.3)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    assert score(x, labels) > score(data(90, noise=2.)[0], labels)
    assert score(x, labels) > score(x, labels[order])
    assert score(x * 1e-4, labels) == pytest.approx(
        score(x, labels), abs=1e-3)


@pytest.mark.parametrize('score', SCORES)
def test_features_may_come_from_a_graph_or_in_half(score) -> None:
    x, labels = data()
    expected = score(x.half(), labels)
    assert score(x.half().requires_grad_(), labels.int()) == expected


@pytest.mark.parametrize('score', [h_score, n_leep])
def test_without_scikit_learn_the_mend_is_named(score, monkeypatch) -> None:
    for name in ('sklearn.covariance', 'sklearn.decomposition'):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match='pip install scikit-learn'):
        score(*data())
