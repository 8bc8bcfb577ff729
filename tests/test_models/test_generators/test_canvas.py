# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What images are optimised through."""

from pathlib import Path

import pytest
import torch
from _upstream import auto_encoder, release

from vim_mm.models.generators.canvas import (LatentCanvas, PixelCanvas,
                                             PyramidCanvas, clip, colour_basis)


def canvases() -> dict:
    torch.manual_seed(0)
    auto = auto_encoder()
    return dict(
        pixels=PixelCanvas(),
        pyramid=PyramidCanvas(),
        one_level=PyramidCanvas(1),
        latent=LatentCanvas(auto),
        codes=LatentCanvas(auto, quantize=True))


GUIDES = torch.rand(2, 3, 10, 13).clamp(.05, 1)
GUIDES[0, :, :2] = 0
GUIDES[1, :, :2] = 1


@pytest.mark.parametrize('name', canvases())
def test_a_canvas_that_learned_nothing_gives_the_guides(name):
    canvas = canvases()[name]
    canvas.start(GUIDES)
    assert torch.equal(canvas(), GUIDES)
    assert list(canvas.parameters())


@pytest.mark.parametrize('name', canvases())
def test_a_canvas_learns_and_stays_an_image(name):
    canvas = canvases()[name]
    canvas.start(GUIDES)
    optimizer = torch.optim.Adam(canvas.parameters(), lr=.05)
    target = 1.5 - GUIDES
    losses = []
    for _ in range(20):
        loss = (canvas() - target).square().mean()
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert canvas().min() >= 0 and canvas().max() <= 1
    assert canvas().shape == GUIDES.shape


@pytest.mark.parametrize('name', canvases())
def test_images_of_a_canvas_do_not_depend_on_each_other(name):
    canvas = canvases()[name]
    canvas.start(GUIDES)
    (canvas()[0] * torch.rand(3, 10, 13)).sum().backward()
    for param in canvas.parameters():
        assert param.grad[0].any() and not param.grad[1].any()


@pytest.mark.parametrize('name', canvases())
def test_noise_is_added_to_the_start(name):
    canvas = canvases()[name]
    noise = torch.randn_like(GUIDES) * .05
    canvas.start(GUIDES, noise)
    assert not torch.equal(canvas(), GUIDES)
    if name in ('pixels', 'pyramid'):
        assert torch.equal(canvas(), (GUIDES + noise).clamp(0, 1))


def test_the_decoders_own_images_start_at_the_re_represented_guides():
    auto = auto_encoder()
    canvas = LatentCanvas(auto, residual=False)
    canvas.start(GUIDES)
    wanted = auto.decode(auto.encode(GUIDES))[..., :10, :13].clamp(0, 1)
    assert torch.allclose(canvas(), wanted)


def test_a_released_auto_encoder_is_read(tmp_path: Path):
    folder = release(tmp_path / 'release')
    made = []
    for given in (folder, auto_encoder()):
        canvas = LatentCanvas(given, quantize=True, residual=False)
        canvas.start(GUIDES)
        made.append(canvas())
    assert torch.equal(*made)


def test_an_auto_encoder_is_frozen_and_no_part_of_what_learns():
    auto = auto_encoder()
    canvas = LatentCanvas(auto)
    canvas.start(GUIDES)
    assert not any(p.requires_grad for p in auto.parameters())
    assert [name for name, _ in canvas.named_parameters()] == ['shift']


def test_clipped_values_come_back_and_go_no_further():
    x = torch.tensor([-.1, -.1, .5, 1.1, 1.1], requires_grad=True)
    clip(x).backward(torch.tensor([1., -1., 1., 1., -1.]))
    # descent subtracts the gradient
    assert x.grad.tolist() == [0, -1, 1, 1, 0]


def test_colours_of_the_basis_are_those_of_the_image():
    image = torch.rand(3, 40, 40) * torch.tensor([1., .5, .2])[:, None, None]
    basis = colour_basis(image)
    lengths = basis.norm(dim=0)
    assert lengths.max() == pytest.approx(1, abs=1e-5)
    covariance = torch.cov(image.flatten(1))
    scaled = basis @ basis.T * torch.linalg.eigvalsh(covariance).max()
    assert torch.allclose(scaled, covariance, atol=1e-4)
    grey = torch.rand(1, 8, 8).expand(3, -1, -1)
    assert torch.linalg.matrix_rank(colour_basis(grey)) == 3


def test_a_pyramid_has_levels():
    with pytest.raises(ValueError, match='num_levels'):
        PyramidCanvas(0)
