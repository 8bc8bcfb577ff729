# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The auto-encoder: gradients, use of codes, and what leaves no trace."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from _upstream import SIZES, auto_encoder, config, write_images
from mmengine.config import Config
from mmengine.runner import Runner

import vim_mm
from _tiny import losses, same, snapshot
from vim_mm.models.generators import VQAutoEncoder, code_use


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 24, 20)


@pytest.mark.parametrize('training', [True, False])
def test_gradients_pass_straight_through(training: bool) -> None:
    """Test 4 of the notes; in eval mode too, as guided images need it."""
    model = auto_encoder().train(training)
    latents = torch.randn(2, 4, 3, 3, requires_grad=True)
    codebook = model.codebook.clone()  # moves in training mode
    quantized, codes = model.quantize(latents)
    torch.testing.assert_close(
        quantized, codebook[codes].movedim(-1, 1), atol=1e-6, rtol=0)
    weights = torch.randn_like(quantized)
    (quantized * weights).sum().backward()
    torch.testing.assert_close(latents.grad, weights)


def test_gradients_reach_the_encoder(images: torch.Tensor) -> None:
    model = auto_encoder(commitment=0.)
    found = model.loss(images)
    (found['loss_l1'] + found['loss_l2']).backward()
    for part in (model.encoder, model.decoder):
        assert all(p.grad.abs().sum() > 0 for p in part.parameters())


def test_commitment_stops_gradients(images: torch.Tensor) -> None:
    """It pulls the encoder to its codes, and neither codes nor decoder."""
    model = auto_encoder(commitment=0.25)
    latents = model.encode(images).detach().requires_grad_()
    codebook = model.codebook.clone()
    quantized, codes, commitment = model._quantize(latents)
    commitment.backward()
    nearest = codebook[codes].movedim(-1, 1)
    torch.testing.assert_close(
        commitment.detach(), 0.25 * (nearest - latents).square().mean())
    torch.testing.assert_close(
        latents.grad, 0.5 * (latents - nearest).detach() / latents.numel())
    assert not any(p.requires_grad for p in model.quantizer.parameters())
    assert all(p.grad is None for p in model.decoder.parameters())


def test_the_codebook_follows_the_encoder() -> None:
    """Its moving averages, against a slow reference."""
    model = auto_encoder(decay=0.9, dead_below=0.)
    latents = torch.randn(2, 4, 5, 5)
    vectors = latents.movedim(1, -1).flatten(0, 2)
    means = model.codebook.clone()
    nearest = torch.cdist(vectors, means).argmin(1)
    sizes, sums = torch.ones(16), means.clone()
    for code in range(16):
        chosen = vectors[nearest == code]
        sizes[code] = 0.9 * sizes[code] + 0.1 * len(chosen)
        sums[code] = 0.9 * sums[code] + 0.1 * chosen.sum(0)
    model.quantize(latents)
    torch.testing.assert_close(
        model.codebook, sums / sizes[:, None], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('size', [(24, 24), (7, 5), (33, 18), (1, 3)])
@pytest.mark.parametrize('downsample', [2, 4, 8])
def test_any_size_comes_back(size: tuple, downsample: int) -> None:
    model = auto_encoder(downsample=downsample).eval()
    images = torch.rand(2, 3, *size)
    result = model(images)
    assert result.shape == images.shape
    assert 0 <= result.min() and result.max() <= 1
    height, width = (-(-side // downsample) for side in size)
    assert model.encode(images).shape == (2, 4, height, width)


@pytest.mark.parametrize('fresh', [True, False])
@pytest.mark.parametrize('how', ['eval', 'no_grad', 'inference'])
def test_images_looked_at_leave_no_trace(fresh: bool, how: str,
                                         images: torch.Tensor) -> None:
    """Before training too: no k-means on whatever comes first."""
    model = VQAutoEncoder(**SIZES) if fresh else auto_encoder()
    model.train(how != 'eval')
    before = snapshot(model)
    context = dict(
        eval=torch.enable_grad, no_grad=torch.no_grad,
        inference=torch.inference_mode)[how]
    with context():
        model(images)
        model.loss(images)
    assert same(snapshot(model), before)


def test_a_training_step_moves_the_codebook(images: torch.Tensor) -> None:
    model = VQAutoEncoder(**SIZES)
    before = model.codebook.clone()
    model.loss(images)
    assert not torch.equal(model.codebook, before)


def test_dead_codes_start_again() -> None:
    """All codes far away but one: soon the others are where vectors are."""
    torch.manual_seed(0)
    latents = torch.randn(4, 4, 6, 6)
    used = {}
    for dead_below in (0., 1.):
        model = auto_encoder(dead_below=dead_below)
        model.codebook = torch.tensor([0.] + [100.] * 15)[:, None].expand(
            16, 4)
        for _ in range(10):
            _, codes = model.quantize(latents.requires_grad_())
        used[dead_below] = len(codes.unique())
    assert used == {0.: 1, 1.: 16}


def test_use_of_codes() -> None:
    counts = auto_encoder().count(torch.tensor([[3, 3], [0, 1]]))
    assert counts.tolist() == [1, 1, 0, 2] + [0] * 12
    found = code_use(counts)
    shares = torch.tensor([.25, .25, .5])
    torch.testing.assert_close(found['perplexity'],
                               (-(shares * shares.log()).sum()).exp())
    assert found['codes_in_use'] == 3 / 16


def test_an_ordinary_runner_trains_it(tmp_path: Path) -> None:
    folder = write_images(tmp_path / 'images')
    cfg = Config(config(folder, folder, tmp_path / 'work', iters=60))
    runner = Runner.from_cfg(cfg)
    runner.train()
    found = losses(runner)
    assert found[-5:].mean() < 0.8 * found[:5].mean()
    logged = runner.message_hub.log_scalars
    assert logged['train/perplexity'].current() > 1
    assert 0 < logged['train/codes_in_use'].current() <= 1


@pytest.mark.parametrize('downsample', [0, 1, 3, 6])
def test_sides_are_halved(downsample: int) -> None:
    with pytest.raises(ValueError, match='no power of two'):
        VQAutoEncoder(downsample=downsample)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'vector_quantize_pytorch', None)
    with pytest.raises(ValueError, match='pip install vector-quantize'):
        VQAutoEncoder()


def test_the_package_does_without_the_library() -> None:
    """No file imports it when it is imported itself."""
    package = Path(vim_mm.__file__).parent
    for path in package.rglob('*.py'):
        for node in ast.parse(path.read_text()).body:
            assert 'vector_quantize_pytorch' not in ast.unparse(node) or (
                isinstance(node, ast.FunctionDef)), path
