# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""ConvPass against the equations of the paper, written out slowly."""

from typing import List, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from _tiny import fill
from vim_mm.models.adapters import BaseAdapter, ConvPass
from vim_mm.models.adapters.conv_pass import as_blocks, conv_tokens


def gelu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


def reference(adapter: ConvPass, x: Tensor, grid: Sequence[int]) -> Tensor:
    """One picture and one token at a time; extra tokens are 1x1 pictures."""
    rows, cols = grid
    num_extra = x.shape[1] - rows * cols
    outputs = []
    for tokens in x:
        u = gelu(tokens @ adapter.down.weight.T + adapter.down.bias)
        v = []
        for extra in u[:num_extra]:
            padded = F.pad(extra[None, :, None, None], (1, 1, 1, 1))
            v.append(
                F.conv2d(padded, adapter.conv.weight,
                         adapter.conv.bias)[0, :, 0, 0])
        picture = u[num_extra:].T.reshape(1, -1, rows, cols)
        picture = F.conv2d(
            F.pad(picture, (1, 1, 1, 1)), adapter.conv.weight,
            adapter.conv.bias)[0]
        for row in range(rows):
            for col in range(cols):
                v.append(picture[:, row, col])
        hidden = gelu(torch.stack(v))
        outputs.append(hidden @ adapter.up.weight.T + adapter.up.bias)
    return adapter.scale * torch.stack(outputs)


def make(num: int, dims: int, hidden: int, **kwargs) -> List[ConvPass]:
    adapters = [ConvPass(dims, hidden, **kwargs) for _ in range(num)]
    for seed, adapter in enumerate(adapters):
        fill(adapter, 0.5, seed)
    return [adapter.double() for adapter in adapters]


@settings(max_examples=25, deadline=None)
@given(
    hidden=st.integers(1, 5),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    extra=st.integers(0, 3),
    batch=st.integers(1, 3),
    scale=st.sampled_from([1., 0.1, 10.]))
def test_forward_is_the_equation(hidden, grid, extra, batch, scale) -> None:
    torch.manual_seed(0)
    adapter, = make(1, 6, hidden, scale=scale)
    x = torch.randn(batch, extra + grid[0] * grid[1], 6).double()
    torch.testing.assert_close(adapter(x, grid), reference(adapter, x, grid))


@settings(max_examples=25, deadline=None)
@given(
    num=st.integers(1, 6),
    hidden=st.integers(1, 4),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    extra=st.integers(0, 3))
def test_wide_is_the_loop_with_all_gradients(num, hidden, grid,
                                             extra) -> None:
    torch.manual_seed(0)
    adapters = make(num, 6, hidden)
    for index, adapter in enumerate(adapters):
        adapter.scale = 1. + index
    x = torch.randn(2, extra + grid[0] * grid[1], 6).double()
    x.requires_grad_()
    gates = torch.rand(num).double().requires_grad_()
    inputs = [x, gates, *(p for a in adapters for p in a.parameters())]

    loop = sum(g * reference(a, x, grid) for g, a in zip(gates, adapters))
    wide = ConvPass.wide(adapters, gates, x, grid)
    torch.testing.assert_close(wide, loop)
    cotangent = torch.randn_like(loop)
    wanted = torch.autograd.grad(loop, inputs, cotangent)
    got = torch.autograd.grad(wide, inputs, cotangent)
    torch.testing.assert_close(got, wanted)
    # the generic loop that other kinds of adapter inherit
    torch.testing.assert_close(
        BaseAdapter.wide.__func__(ConvPass, adapters, gates, x, grid), loop)


def test_wide_at_the_size_of_the_paper_in_float32() -> None:
    torch.manual_seed(0)
    adapters = [ConvPass(768, 8, conv_init='xavier') for _ in range(6)]
    for adapter in adapters:
        torch.nn.init.xavier_uniform_(adapter.up.weight)
    x, gates = torch.randn(2, 197, 768), torch.rand(6).softmax(0)
    loop = sum(g * reference(a, x, (14, 14)) for g, a in zip(gates, adapters))
    wide = ConvPass.wide(adapters, gates, x, (14, 14))
    assert (wide - loop).abs().max() < 2e-6 < loop.abs().max()


@pytest.mark.parametrize(('hidden', 'params'), [(4, 7064), (8, 13648),
                                                (16, 27680), (32, 59200),
                                                (64, 136064)])
def test_number_of_parameters_of_the_paper(hidden: int, params: int) -> None:
    adapter = ConvPass(768, hidden)
    assert sum(p.numel() for p in adapter.parameters()) == params


def test_extra_tokens_feel_the_centre_tap_only() -> None:
    adapter, = make(1, 6, 3)
    x = torch.randn(1, 2 + 3 * 4, 6).double()
    before = adapter(x, (3, 4))
    with torch.no_grad():
        mask = torch.ones(3, 3, dtype=torch.bool)
        mask[1, 1] = False
        adapter.conv.weight[:, :, mask] += 1
    outer = adapter(x, (3, 4))
    assert torch.equal(outer[:, :2], before[:, :2])
    assert not torch.isclose(outer[:, 2:], before[:, 2:]).any(-1).all()
    with torch.no_grad():
        adapter.conv.weight[:, :, 1, 1] += 1
    assert not torch.isclose(adapter(x, (3, 4))[:, :2], before[:, :2]).all()


def test_rows_and_columns_are_not_exchanged() -> None:
    adapter, = make(1, 6, 3)
    x = torch.randn(1, 12, 6).double()
    turned = x.view(1, 3, 4, 6).transpose(1, 2).reshape(1, 12, 6)
    adapter_turned, = make(1, 6, 3)
    adapter_turned.conv.weight.data = adapter.conv.weight.data.transpose(2, 3)
    expected = adapter(x, (3, 4)).view(1, 3, 4, 6).transpose(1, 2)
    torch.testing.assert_close(
        adapter_turned(turned, (4, 3)), expected.reshape(1, 12, 6))


@pytest.mark.parametrize('conv_init', ['identity', 'xavier'])
def test_fresh_is_exactly_zero_and_learns(conv_init: str) -> None:
    adapter = ConvPass(16, 4, conv_init=conv_init)
    x = torch.randn(2, 10, 16)
    delta = adapter(x, (3, 3))
    assert torch.equal(delta, torch.zeros_like(x))
    delta.sum().backward()
    assert adapter.up.weight.grad.abs().sum() > 0
    identity = torch.zeros(4, 4, 3, 3)
    identity[range(4), range(4), 1, 1] = 1
    assert torch.equal(adapter.conv.weight, identity) == (
        conv_init == 'identity')


def test_unknown_conv_init_is_refused() -> None:
    with pytest.raises(ValueError, match="use 'identity' or 'xavier'"):
        ConvPass(8, conv_init='zeros')


def test_dropout_acts_in_training_only() -> None:
    adapter = ConvPass(16, 8, drop_rate=0.5)
    fill(adapter)
    x = torch.randn(2, 10, 16)
    adapter.eval()
    assert torch.equal(adapter(x, (3, 3)), adapter(x, (3, 3)))
    adapter.train()
    assert not torch.equal(adapter(x, (3, 3)), adapter(x, (3, 3)))


@pytest.mark.parametrize(('groups', 'width', 'blocks'), [
    (1, 8, 1), (2, 8, 1), (16, 8, 1), (17, 8, 1), (32, 8, 2), (40, 8, 2),
    (12, 4, 1), (9, 32, 3)])
def test_wide_blocks_are_the_same_convolution(groups: int, width: int,
                                              blocks: int) -> None:
    weight = torch.randn(groups * width, width, 3, 3).double()
    bias = torch.randn(groups * width).double()
    u = torch.randn(2, 1 + 3 * 5, groups * width).double()
    wide, num = as_blocks(weight, groups)
    assert num == blocks and wide.shape[1] == groups * width // blocks
    torch.testing.assert_close(
        conv_tokens(u, wide, bias, (3, 5), num),
        conv_tokens(u, weight, bias, (3, 5), groups))
