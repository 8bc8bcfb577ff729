"""Layers of every layout and size meet at the same places."""

import pytest
import torch
import torch.nn.functional as F

from vim_mm.models.distillers import projectors
from vim_mm.models.distillers.projectors import as_map, meet, resize
from vim_mm.registry import MODELS

PICTURE = (56, 84)
SHAPES = dict(
    map=(2, 3, 4, 6),
    small_map=(2, 3, 2, 3),
    large_map=(2, 3, 14, 21),
    tokens=(2, 24, 3),
    class_tokens=(2, 29, 3),
    vector=(2, 3))


def features(name: str, width: int = 3) -> torch.Tensor:
    """A ramp: places of a picture hold how far right and down they are."""
    shape = SHAPES[name]
    if name == 'vector':
        return torch.full((2, width), 0.5)
    height, wide = shape[-2:] if len(shape) == 4 else (4, 6)
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(wide) + 0.5) / wide
    ramp = (rows[:, None] + columns) / 2
    ramp = ramp.expand(2, width, -1, -1)
    if len(shape) == 4:
        return ramp
    tokens = ramp.flatten(2).transpose(1, 2)
    extra = shape[1] - tokens.shape[1]
    return torch.cat([torch.full((2, extra, width), 9.), tokens], 1)


@pytest.mark.parametrize('teacher', SHAPES)
@pytest.mark.parametrize('student', SHAPES)
def test_layers_meet_at_the_same_places(student, teacher):
    mine, theirs = meet(features(student), features(teacher, 5), PICTURE)
    assert mine.shape[:2] == theirs.shape[:2]
    assert (mine.shape[-1], theirs.shape[-1]) == (3, 5)
    if 'vector' in (student, teacher):
        assert mine.shape[1] == 1
    elif 'map' in teacher:
        assert mine.shape[1] == features(teacher)[0, 0].numel()
    # resized or averaged, a ramp stays the ramp, but for the border
    gap = (mine[..., 0] - theirs[..., 0]).abs()
    assert gap.mean() < 0.06 and gap.max() < 0.2


def test_maps_that_shrink_are_averaged():
    x = torch.randn(1, 2, 8, 8, requires_grad=True)
    small = resize(x, (4, 4))
    want = x.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    torch.testing.assert_close(small, want)
    small[0, 0, 0, 0].backward()
    assert x.grad.count_nonzero() == 4
    assert resize(x, (8, 8)) is x
    torch.testing.assert_close(
        resize(x, (16, 12)),
        F.interpolate(x, (16, 12), mode='bilinear', align_corners=False))


@pytest.mark.parametrize('tokens, picture, grid', [
    (197, (224, 224), (14, 14)),
    (201, (224, 224), (14, 14)),
    (261, (224, 224), (16, 16)),
    (49, (224, 224), (7, 7)),
    (50, (224, 224), (7, 7)),
    (25, (56, 84), (4, 6)),
    (24, (84, 56), (6, 4)),
    (7 * 10, (200, 300), (7, 10)),
    (1, (56, 56), (1, 1)),
    (17, (56, 56), (4, 4)),
])
def test_tokens_are_a_grid_of_the_picture(tokens, picture, grid):
    got = as_map(torch.randn(1, tokens, 2), picture)
    assert got.shape[-2:] == grid


def test_tokens_of_something_else_are_refused():
    with pytest.raises(ValueError, match='100 tokens are no grid'):
        as_map(torch.randn(1, 100, 2), (200, 20))


@pytest.mark.parametrize('kind', ['LinearProjector', 'MLPProjector'])
def test_projectors_work_at_each_place(kind):
    projector = MODELS.build(
        dict(type=f'vim_mm.{kind}', in_channels=3, out_channels=5))
    x = torch.randn(2, 7, 3)
    got = projector(x)
    assert got.shape == (2, 7, 5)
    torch.testing.assert_close(got[:, 2:3], projector(x[:, 2:3]))


def test_a_linear_projector_is_a_convolution_on_maps():
    projector = projectors.LinearProjector(3, 5)
    x = torch.randn(2, 3, 4, 6)
    conv = F.conv2d(x, projector.layer.weight[..., None, None],
                    projector.layer.bias)
    tokens, _ = meet(x, x, PICTURE)
    torch.testing.assert_close(
        projector(tokens), conv.flatten(2).transpose(1, 2))


def test_the_hidden_width_can_be_set():
    projector = projectors.MLPProjector(3, 5, hidden_channels=7)
    assert [p.shape for p in projector.parameters() if p.dim() == 2
            ] == [(7, 3), (5, 7)]
