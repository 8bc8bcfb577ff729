"""Losses against their equations, and what must not change them."""

import pytest
import torch
from torch import Tensor

from vim_mm.models.distillers import CosineSmoothL1, LinearCKA, LogitsKL
from vim_mm.registry import MODELS


def pair(*shape: int, width: int = 0) -> tuple:
    student = torch.randn(*shape, requires_grad=True)
    return student, torch.randn(*shape[:-1], width or shape[-1]) * 2


@pytest.mark.parametrize('tau', [1., 4.])
@pytest.mark.parametrize('places', [1, 5])
def test_kl_of_exclusive_classes(tau, places):
    student, teacher = pair(3, places, 4)
    want = 0.
    for s, t in zip(student.flatten(0, 1), teacher.flatten(0, 1)):
        p, q = (t / tau).softmax(0), (s / tau).softmax(0)
        want += sum(a * (a / b).log() for a, b in zip(p, q))
    want = tau**2 * want / (3 * places)
    loss = LogitsKL(tau)(student, teacher)
    torch.testing.assert_close(loss, want)
    loss.backward()
    grad = tau * ((student / tau).softmax(-1) - (teacher / tau).softmax(-1))
    torch.testing.assert_close(student.grad, grad / (3 * places))


@pytest.mark.parametrize('tau', [1., 3.])
def test_kl_of_classes_for_themselves(tau):
    student, teacher = pair(2, 3, 4)
    p, q = (teacher / tau).sigmoid(), (student / tau).sigmoid()
    want = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    got = LogitsKL(tau, sigmoid=True)(student, teacher)
    torch.testing.assert_close(got, tau**2 * want.sum(-1).mean())


@pytest.mark.parametrize('sigmoid', [False, True])
def test_kl_by_confidence_is_a_weighted_mean(sigmoid):
    student, teacher = pair(2, 3, 4)
    p = teacher.sigmoid() if sigmoid else teacher.softmax(-1)
    each = torch.stack([
        LogitsKL(1., sigmoid)(s[None, None], t[None, None])
        for s, t in zip(student.flatten(0, 1), teacher.flatten(0, 1))
    ])
    weights = p.amax(-1).flatten()
    got = LogitsKL(1., sigmoid, by_confidence=True)(student, teacher)
    torch.testing.assert_close(got, (each * weights).sum() / weights.sum())


@pytest.mark.parametrize('sigmoid', [False, True])
@pytest.mark.parametrize('scale', [1., 1e4])
def test_kl_of_a_network_with_itself_is_zero(sigmoid, scale):
    student, _ = pair(2, 3, 4)
    loss = LogitsKL(2., sigmoid)(student * scale, student.detach() * scale)
    assert loss.abs() < 1e-6
    far = LogitsKL(2., sigmoid)(student * scale, -student.detach() * scale)
    assert torch.isfinite(far) and far > 0


def test_features_at_each_place():
    student, teacher = pair(2, 3, 5)
    angle = distance = 0.
    for s, t in zip(student.flatten(0, 1), teacher.flatten(0, 1)):
        angle += (1 - s @ t / (s.norm() * t.norm())) / 6
        for a, b in zip(s, t):
            gap = (a - b).abs()
            distance += (gap - 0.5 if gap > 1 else gap**2 / 2) / 30
    loss = CosineSmoothL1()
    torch.testing.assert_close(
        loss(student, teacher), 0.9 * angle + 0.1 * distance)
    torch.testing.assert_close(
        CosineSmoothL1(0.5, 0.)(student, teacher), 0.5 * angle)
    assert loss(teacher, teacher) < 1e-6


# ---------------------------------------------------------------------- CKA


def gram(features: Tensor) -> Tensor:
    rows = features.flatten(0, -2).double()
    return rows @ rows.T


def plain_hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    n = len(k)
    h = torch.eye(n).double() - 1 / n
    return (k @ h @ l @ h).trace()


def unbiased_hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    """Equation 3 of arXiv 2010.15327, without its first factor."""
    n, ones = len(k), torch.ones(len(k)).double()
    k, l = k - k.diag().diag(), l - l.diag().diag()  # noqa: E741
    return (k @ l).trace() + (ones @ k @ ones) * (ones @ l @ ones) / (
        (n - 1) * (n - 2)) - 2 / (n - 2) * (
            ones @ k @ l @ ones)


@pytest.mark.parametrize('unbiased, hsic', [(False, plain_hsic),
                                            (True, unbiased_hsic)])
@pytest.mark.parametrize('shape, width', [((4, 1, 6), 3), ((3, 9, 4), 8),
                                          ((2, 7, 5), 30)])
def test_cka_is_its_equation(unbiased, hsic, shape, width):
    student, teacher = pair(*shape, width=width)
    # the estimate is of features that are not centred
    student, teacher = student + 1, teacher - 3
    k, l = gram(student), gram(teacher)  # noqa: E741
    want = 1 - hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt()
    got = LinearCKA(unbiased)(student, teacher)
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('unbiased', [False, True])
def test_cka_knows_no_rotation_scale_or_shift(unbiased):
    student, teacher = pair(4, 8, 6, width=5)
    loss = LinearCKA(unbiased)
    want = loss(student, teacher)
    turn = torch.linalg.qr(torch.randn(6, 6))[0]
    moved = 3 * student @ turn + torch.randn(6)
    torch.testing.assert_close(loss(moved, teacher), want, atol=1e-5, rtol=0)
    assert loss(moved, student.detach()).abs() < 1e-5
    bent = student @ torch.diag(torch.tensor([9., 1, 1, 1, 1, 1]))
    assert (loss(bent, teacher) - want).abs() > 1e-3
    order = torch.randperm(4)
    torch.testing.assert_close(
        loss(student[order], teacher[order]), want, atol=1e-5, rtol=0)
    want.backward()
    assert student.grad.abs().sum() > 0


def test_only_the_unbiased_estimate_tells_wide_features_apart():
    student, teacher = pair(16, 1, 512)
    assert LinearCKA(unbiased=False)(student, teacher) < 0.1
    assert LinearCKA()(student, teacher) > 0.8


@pytest.mark.parametrize('unbiased, places', [(True, 3), (False, 1)])
def test_cka_needs_places(unbiased, places):
    with pytest.raises(ValueError, match='larger batches'):
        LinearCKA(unbiased)(*pair(places, 1, 4))


def test_cka_of_constant_features_is_no_nan():
    student, teacher = pair(8, 1, 4)
    for constant in (torch.ones(8, 1, 4), torch.zeros(8, 1, 4)):
        loss = LinearCKA()(student, constant)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(student.grad).all()


@pytest.mark.parametrize('cfg', [
    dict(type='vim_mm.LogitsKL'),
    dict(type='vim_mm.LogitsKL', sigmoid=True),
    dict(type='vim_mm.CosineSmoothL1'),
    dict(type='vim_mm.LinearCKA')
])
def test_losses_compute_in_single_precision(cfg):
    loss = MODELS.build(cfg)
    student, teacher = pair(4, 8, 6)
    student, teacher = student.bfloat16(), teacher.bfloat16()
    want = loss(student.float(), teacher.float())
    with torch.autocast('cpu', torch.bfloat16):
        got = loss(student, teacher)
    assert got.dtype == torch.float and torch.equal(got, want)


@pytest.mark.parametrize('kind, cfg', [(LogitsKL, dict(tau=0)),
                                       (LogitsKL, dict(tau=-1)),
                                       (LogitsKL, dict(tau=1e6)),
                                       (LogitsKL, dict(tau=1e-6)),
                                       (CosineSmoothL1, dict(cosine=-1)),
                                       (CosineSmoothL1, dict(smooth_l1='a'))])
def test_settings_that_mean_nothing_are_refused(kind, cfg):
    with pytest.raises(ValueError, match=next(iter(cfg))):
        kind(**cfg)
