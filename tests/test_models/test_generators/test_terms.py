# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Terms of the loss against slow loops over the formulas."""

import math

import pytest
import torch
from mmpretrain.models.utils import LayerNorm2d
from torch import nn

from vim_mm.models.generators.priors import (agreement, divergence, norm,
                                             total_variation)
from vim_mm.models.generators.statistics import (LayerStatistics, Moments,
                                                 moments, pool)


def test_total_variation_is_four_norms_of_differences():
    x = torch.randn(2, 3, 5, 4)
    for image, found in zip(x, total_variation(x)):
        total = 0.
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
            squares = 0.
            for row in range(5 - down):
                for col in range(4):
                    if 0 <= col + right < 4:
                        apart = image[:, row, col] - image[:, row + down,
                                                           col + right]
                        squares += float(apart.square().sum())
            total += math.sqrt(squares)
        assert float(found) == pytest.approx(total, rel=1e-5)


def test_total_variation_of_a_constant_image_is_zero():
    x = torch.full((2, 3, 4, 4), 0.3, requires_grad=True)
    total_variation(x).sum().backward()
    assert torch.equal(total_variation(x), torch.zeros(2))
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_norm_is_of_each_image():
    x = torch.randn(2, 3, 4, 4)
    assert torch.allclose(norm(x), x.square().sum((1, 2, 3)).sqrt())


@pytest.mark.parametrize('shape', [(3, 4), (3, 4, 2, 5)])
def test_agreement_is_one_minus_jensen_shannon(shape):
    logits, other = torch.randn(2, *shape) * 8
    found = agreement(logits, other)
    for image in range(3):
        total, positions = 0., 0
        rows = logits[image].reshape(4, -1).T, other[image].reshape(4, -1).T
        for one, two in zip(*rows):
            p = [min(.99, max(.01, float(v))) for v in (one / 3).softmax(0)]
            q = [min(.99, max(.01, float(v))) for v in (two / 3).softmax(0)]
            for a, b in zip(p, q):
                m = (a + b) / 2
                total += (a * math.log(a / m) + b * math.log(b / m)) / 2
            positions += 1
        assert float(found[image]) == pytest.approx(
            1 - total / positions, rel=1e-4)
    assert torch.allclose(agreement(logits, logits), torch.ones(3))


@pytest.mark.parametrize('shape', [(3, 4), (3, 4, 2, 5)])
def test_divergence_is_from_the_images_to_the_guides_classes(shape):
    logits, target = torch.randn(2, *shape)
    p, q = logits.softmax(1), target.softmax(1)
    wanted = (p * (p / q).log()).sum(1).reshape(3, -1).mean(1)
    assert torch.allclose(divergence(logits, target), wanted, atol=1e-6)
    assert torch.allclose(divergence(logits, logits), torch.zeros(3))


# -------------------------------------------------------------- statistics


def net() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for layer in (made[0], made[2]):
        layer.running_mean.normal_()
        layer.running_var.uniform_(.5, 2)
    return made.eval()


def read(statistics: LayerStatistics, model: nn.Module, *batches):
    with statistics.watching() as seen:
        for x in batches:
            model(x)
    return seen


def test_batch_norm_term_is_the_formula_with_biased_variance():
    model, x = net(), torch.randn(2, 3, 6, 6)
    statistics = LayerStatistics(model, first=10.)
    total = 0.
    with torch.no_grad():
        inputs = x, model[1](model[0](x))
    for weight, layer, given in zip((10, 1), (model[0], model[2]), inputs):
        means, variances = [], []
        for channel in range(given.shape[1]):
            values = given[:, channel].flatten().tolist()
            mean = sum(values) / len(values)
            means.append(mean - float(layer.running_mean[channel]))
            variances.append(
                sum((v - mean)**2 for v in values) / len(values) -
                float(layer.running_var[channel]))
        total += weight * sum(
            math.sqrt(sum(v * v for v in apart))
            for apart in (means, variances))
    found = statistics(read(statistics, model, x))
    assert float(found) == pytest.approx(total, rel=1e-4)


def test_term_is_zero_where_the_batch_has_the_running_statistics():
    x = torch.randn(4, 3, 5, 5)
    layer = nn.Sequential(nn.BatchNorm2d(3)).eval()
    _, layer[0].running_mean, layer[0].running_var = moments(x, 1)
    statistics = LayerStatistics(layer)
    seen = read(statistics, layer, x)
    assert float(statistics(seen)) == 0
    # the unbiased variance would be another one
    layer[0].running_var = x.var((0, 2, 3), correction=1)
    assert float(LayerStatistics(layer)(seen)) > 1e-2


def test_a_batch_in_parts_has_the_moments_of_the_whole():
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64) * 3 + 1
    whole = moments(x, 1)
    parts = pool(moments(part, 1) for part in (x[:1], x[1:4], x[4:]))
    assert whole.count == parts.count == 80
    for one, two in zip(whole[1:], parts[1:]):
        assert torch.allclose(one, two)
    # heads see one image after the other
    model = net().double()
    statistics = LayerStatistics(model)
    apart = statistics(read(statistics, model, *x.split(1)))
    assert torch.allclose(apart, statistics(read(statistics, model, x)))


@pytest.mark.parametrize(('layer', 'shape', 'axes', 'kwargs'), [
    (nn.LayerNorm(4), (2, 5, 4), (0, 1), {}),
    (nn.LayerNorm(4), (2, 4, 4, 4), (0, 1, 2), {}),
    (LayerNorm2d(4), (2, 4, 3, 3), (0, 2, 3), {}),
    (LayerNorm2d(4), (2, 4, 4, 4), (0, 2, 3), {}),
    (LayerNorm2d(4), (2, 3, 3, 4),
     (0, 1, 2), dict(data_format='channel_last')),
    (LayerNorm2d(4), (2, 4, 4, 4),
     (0, 1, 2), dict(data_format='channel_last')),
])
def test_layer_norms_expect_what_they_read_on_the_downstream_images(
        layer, shape, axes, kwargs):
    x = torch.randn(*shape) + torch.arange(shape[-1])
    model = nn.ModuleList([layer])
    statistics = LayerStatistics(model, first=1.)
    assert not statistics.is_complete
    with statistics.watching() as seen:
        layer(x, **kwargs)
    statistics.collect([seen])
    target, = statistics.targets.values()
    assert torch.allclose(target.mean, x.mean(axes), atol=1e-6)
    assert torch.allclose(target.var, x.var(axes, correction=0), atol=1e-5)
    assert float(statistics(seen)) == pytest.approx(0, abs=1e-5)


def test_collected_statistics_are_of_all_batches():
    layer = nn.Sequential(nn.LayerNorm(4))
    x = torch.randn(7, 5, 4)
    statistics = LayerStatistics(layer)
    statistics.collect(read(statistics, layer, part) for part in x.split(3))
    target = statistics.targets['0']
    assert torch.allclose(target.var, x.var((0, 1), correction=0))


def test_running_statistics_can_be_those_of_the_downstream_images():
    model, x = net(), torch.randn(2, 3, 6, 6)
    kept = LayerStatistics(model)
    assert kept.is_complete
    assert kept.targets['0'] == Moments(0, model[0].running_mean,
                                        model[0].running_var)
    own = LayerStatistics(model, running=False)
    own.collect([read(own, model, x)])
    assert torch.allclose(own.targets['0'].mean, x.mean((0, 2, 3)))
    assert float(own(read(own, model, x))) == pytest.approx(0, abs=1e-4)


def test_layers_can_be_named_and_a_net_without_norms_is_refused():
    assert list(LayerStatistics(net(), layers='2').layers) == ['2']
    with pytest.raises(ValueError, match='no BatchNorm with running'):
        LayerStatistics(
            nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))
    with pytest.raises(ValueError, match="named like '1'"):
        LayerStatistics(net(), layers='1')
