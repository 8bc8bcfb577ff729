# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Published transferability scores of features for given labels.

All take features (n, d) and integer labels (n, ), compute in float64 on the
CPU, and are larger for better features. None of them trains anything. Where
rows may have several classes, or none, labels are a column for each class,
(n, c), and the score is averaged over classes; that is ours.
"""

import math
from importlib import import_module
from types import ModuleType
from typing import Any, Callable, Optional, Tuple

import torch
from torch import Tensor

from .ridge import targets


def log_me(x: Tensor, labels: Tensor) -> float:
    """LogME: log marginal evidence of a Bayesian linear model.

    You et al., ICML 2021 (arXiv 2102.11005): per class, the 0/1 target is
    ``y ~ N(x w, 1 / beta)`` with the prior ``w ~ N(0, 1 / alpha)``; alpha and
    beta maximise the evidence ``p(y | x)``, whose logarithm is averaged over
    rows and classes. The paper iterates to a fixed point; here the best beta
    is in closed form given ``alpha / beta``, which leaves one dimension to
    search (a grid, then a finer one, between 1e-8 and 1e8 times the mean
    eigenvalue of ``x x^T``).

    Args:
        x (Tensor): Features (n, d), not centred, as in the paper.
        labels (Tensor): Classes (n, ), integers.

    Returns:
        float: Mean log evidence per row.
    """
    x, onehot = _columns(x, labels)
    energy, projected, rest = _spectrum(x, onehot)
    total = [
        _best_evidence(energy, projected[:, c], rest[c], len(x))
        for c in range(len(rest))
    ]
    return sum(total) / len(total) / len(x)


def _columns(x: Tensor, labels: Tensor) -> Tuple[Tensor, Tensor]:
    """Features and a column for each class, wherever they come from."""
    return x.detach().cpu().double(), targets(labels.cpu())[0]


def _over_classes(score: Callable[..., float], x: Tensor, labels: Tensor,
                  *args: Any) -> float:
    """The mean of a score over classes that some rows have and some not."""
    columns = targets(labels.cpu())[0].T.long()
    return sum(score(x, column, *args) for column in columns) / len(columns)


def _spectrum(x: Tensor, y: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues r of ``x x^T``, energy of targets along and beside them.

    Returns:
        tuple[Tensor, Tensor, Tensor]: (r, ), (r, c) and (c, ); r is the
        smaller of n and d.
    """
    n, d = x.shape
    if n <= d:
        energy, axes = torch.linalg.eigh(x @ x.T)
        along = axes.T @ y
    else:
        energy, axes = torch.linalg.eigh(x.T @ x)
        along = axes.T @ (x.T @ y) / energy.clamp(min=1e-300).sqrt()[:, None]
    # directions without energy carry no information, only rounding noise
    real = energy > energy.max() * 1e-12
    energy, along = energy[real], along[real]**2
    return energy, along, ((y**2).sum(0) - along.sum(0)).clamp(min=0)


def _best_evidence(energy: Tensor, along: Tensor, rest: Tensor,
                   n: int) -> float:
    """Log evidence of one target at the best alpha and beta."""
    grid = energy.mean() * torch.logspace(-8, 8, 129, dtype=energy.dtype)
    best = _evidence(grid, energy, along, rest, n).argmax()
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, 128)]
    fine = torch.logspace(
        low.log10(), high.log10(), 129, dtype=energy.dtype)
    return float(_evidence(fine, energy, along, rest, n).max())


def _evidence(ratio: Tensor, energy: Tensor, along: Tensor, rest: Tensor,
              n: int) -> Tensor:
    """Log evidence at ``alpha / beta = ratio``, with the best beta.

    ``y ~ N(0, K / beta)`` with ``K = 1 + x x^T / ratio``, and the best beta is
    ``n / (y^T K^-1 y)``.
    """
    scale = 1 + energy / ratio[:, None]
    misfit = (along / scale).sum(1) + rest
    return -.5 * (
        n * torch.log(2 * math.pi * misfit / n) + n + scale.log().sum(1))


def h_score(x: Tensor,
            labels: Tensor,
            shrinkage: Optional[float] = None) -> float:
    """H-score: ``tr(cov(x)^-1 cov(E[x | y]))``.

    Bao et al., ICIP 2019. With few rows the inverse is noise, and with fewer
    rows than features every model would score the same; the covariance is
    therefore shrunk towards a multiple of the identity by the amount of
    Ledoit and Wolf, and the score scaled by ``1 - shrinkage``, as Ibrahim et
    al. (arXiv 2110.06893) propose.

    Args:
        x (Tensor): Features (n, d).
        labels (Tensor): Classes (n, ), integers.
        shrinkage (float, optional): Between 0, the score of Bao et al. (with
            a pseudo-inverse), and 1. Ledoit and Wolf's when None.

    Returns:
        float: Between 0 and the number of classes less one.
    """
    if labels.dim() > 1:
        return _over_classes(h_score, x, labels, shrinkage)
    x, onehot = _columns(x, labels)
    x = x - x.mean(0)
    covariance = x.T @ x / len(x)
    counts = onehot.sum(0)
    means = onehot.T @ x / counts[:, None] * (counts / len(x)).sqrt()[:, None]
    if shrinkage is None:
        ledoit_wolf = library('sklearn.covariance').ledoit_wolf_shrinkage
        shrinkage = float(ledoit_wolf(x.numpy(), assume_centered=True))
    if shrinkage == 0:
        return float((means @ torch.linalg.pinv(covariance, hermitian=True) *
                      means).sum())
    target = torch.eye(len(covariance), dtype=x.dtype)
    target *= covariance.trace() / len(covariance)
    shrunk = (1 - shrinkage) * covariance + shrinkage * target
    solved = torch.linalg.solve(shrunk, means.T)
    return float((1 - shrinkage) * (means.T * solved).sum())


def n_leep(x: Tensor,
           labels: Tensor,
           energy: float = 0.8,
           per_class: int = 5) -> float:
    """N-LEEP: LEEP with clusters of the features as source classes.

    Li et al., CVPR 2021 (arXiv 2011.11200): principal components, a Gaussian
    mixture on them, then :func:`leep` of its posterior. Ours: covariances are
    diagonal, and there is at most one component for five rows, because full
    ones are singular on few rows.

    Args:
        x (Tensor): Features (n, d).
        labels (Tensor): Classes (n, ), integers.
        energy (float): Share of the variance that is kept. Defaults to 0.8.
        per_class (int): Components of the mixture for each class.
            Defaults to 5.

    Returns:
        float: Mean log-likelihood of the labels; not above zero.
    """
    pca = library('sklearn.decomposition').PCA(energy, svd_solver='full')
    x, onehot = _columns(x, labels)
    low = pca.fit_transform(x.numpy())
    classes = onehot.shape[1]
    mixture = library('sklearn.mixture').GaussianMixture(
        max(1, min(per_class * classes, len(x) // 5)),
        covariance_type='diag',
        # in units of the data: features come in any scale
        reg_covar=1e-6 * float(pca.explained_variance_.mean()),
        random_state=0)
    mixture.fit(low)
    return leep(torch.from_numpy(mixture.predict_proba(low)), labels)


def leep(posterior: Tensor, labels: Tensor) -> float:
    """LEEP: mean log of ``sum_z p(y_i | z) p(z | x_i)``.

    Nguyen et al., ICML 2020 (arXiv 2002.12462); ``p(y | z)`` is the empirical
    one under the posterior.

    Args:
        posterior (Tensor): ``p(z | x)``, (n, v), rows sum to one.
        labels (Tensor): Classes (n, ), integers.

    Returns:
        float: Not above zero.
    """
    if labels.dim() > 1:
        return _over_classes(leep, posterior, labels)
    posterior, onehot = _columns(posterior, labels)
    # a component without members counts for no row
    mass = posterior.sum(0).clamp(min=1e-300)
    conditional = posterior.T @ onehot / mass[:, None]
    return float(((posterior @ conditional) * onehot).sum(1).log().mean())


def library(name: str) -> ModuleType:
    """A module of scikit-learn or SciPy, which only ranking needs.

    Raises:
        ValueError: If the package is not installed; names the fix.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(
            f'Ranking modules needs {name}, which cannot be imported '
            f'({error}); pip install scikit-learn, which brings SciPy along.'
        ) from error
