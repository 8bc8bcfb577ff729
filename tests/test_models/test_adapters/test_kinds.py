# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Every kind of adapter against slow equations, and what kinds share."""

from typing import List, Optional, Sequence, Tuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from _tiny import fill
from vim_mm.models.adapters import (AdapterBank, BaseAdapter,
                                    BottleneckAdapter, ConvPass, LoRA,
                                    SideLadder, build_adapter)

DIMS, OUT = 6, 9
CFGS = dict(
    conv=[
        dict(type='ConvPass', hidden_dims=3, scale=2.),
        dict(type='ConvPass', hidden_dims=3),
        dict(type='ConvPass', hidden_dims=6, groups=2),
    ],
    bottleneck=[
        dict(type='BottleneckAdapter', hidden_dims=3, scale=.5),
        dict(type='BottleneckAdapter', hidden_dims=5),
        dict(type='BottleneckAdapter', hidden_dims=2),
    ],
    lora=[
        dict(type='LoRA', rank=2, alpha=3.),
        dict(type='LoRA', rank=4),
        dict(type='LoRA', rank=1, alpha=.5),
    ],
    neck=[
        dict(type='SideLadder', hidden_dims=3, scale=2.),
        dict(type='SideLadder', hidden_dims=3),
        dict(type='SideLadder', hidden_dims=6, groups=2),
    ])
KINDS = list(CFGS)


def make(kind: str, num: int = 3, seed: int = 0) -> List[BaseAdapter]:
    dims = (DIMS, OUT) if kind == 'lora' else DIMS
    adapters = [build_adapter(CFGS[kind][k % 3], dims) for k in range(num)]
    for index, adapter in enumerate(adapters):
        fill(adapter, 0.5, seed + index)
    return [adapter.double() for adapter in adapters]


def tokens(batch: int = 2, length: int = 7, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(
        batch, length, DIMS, generator=generator, dtype=torch.float64)


def delta_of(result: object) -> Tensor:
    """Kinds beside the trunk return their state too."""
    return result[0] if isinstance(result, tuple) else result


def weighed(adapters: Sequence[BaseAdapter], gates: Tensor, x: Tensor,
            grid: Tuple[int, int]) -> Tensor:
    """The ensemble, picture by picture and module by module."""
    rows = gates.expand(len(x), -1) if gates.dim() == 1 else gates
    return torch.stack([
        sum(g * delta_of(a(picture[None], grid))[0]
            for g, a in zip(row, adapters)) for picture, row in zip(x, rows)
    ])


# ---------------------------------------------------------------- equations


def test_lora_is_the_changed_linear_layer() -> None:
    adapter = make('lora', 1)[0]
    layer = torch.nn.Linear(DIMS, OUT).double()
    x = tokens()
    change = 3. / 2 * adapter.up.weight @ adapter.down.weight
    changed = F.linear(x, layer.weight + change, layer.bias)
    torch.testing.assert_close(layer(x) + adapter(x), changed)
    # the layout of PEFT's lora_A and lora_B
    assert {k: tuple(v.shape) for k, v in adapter.state_dict().items()} == {
        'down.weight': (2, DIMS), 'up.weight': (OUT, 2)}


@pytest.mark.parametrize(('act', 'function'), [
    ('GELU', F.gelu), ('ReLU', F.relu), ('SiLU', F.silu),
    ('QuickGELU', lambda x: x / (1 + torch.exp(-1.702 * x)))])
def test_bottleneck_is_its_equation(act: str, function) -> None:
    adapter = BottleneckAdapter(DIMS, 4, act=act, scale=.3)
    fill(adapter.double())
    x = tokens()
    hidden = function(x @ adapter.down.weight.T + adapter.down.bias)
    expected = .3 * (hidden @ adapter.up.weight.T + adapter.up.bias)
    torch.testing.assert_close(adapter(x), expected)
    assert sum(p.numel() for p in adapter.parameters()) == 2 * 6 * 4 + 4 + 6


def climb(rungs: Sequence[SideLadder], levels: Sequence[Tensor],
          extras: Sequence[Optional[Tensor]]) -> List[Tensor]:
    """A ladder written out: maps are pooled cell by cell.

    Levels are maps (C, H, W), extras a token (C, ) each, or None.
    """

    def gelu(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-1.702 * x))

    deltas, below, below_extra = [], None, None
    for rung, level, extra in zip(rungs, levels, extras):
        down, up = rung.down, rung.up
        u = torch.einsum('hc,cyx->hyx', down.weight, level)
        u = gelu(u + down.bias[:, None, None])
        rows, cols = level.shape[1:]
        if below is not None:
            high, wide = below.shape[1:]
            for y in range(rows):
                for x in range(cols):
                    cell = below[:, y * high // rows:-(-(y + 1) * high
                                                       // rows), x * wide
                                 // cols:-(-(x + 1) * wide // cols)]
                    u[:, y, x] += cell.mean(dim=(1, 2))
        below = gelu(
            F.conv2d(u[None], rung.conv.weight, rung.conv.bias, padding=1)[0])
        delta = torch.einsum('ch,hyx->cyx', up.weight, below)
        delta = (delta + up.bias[:, None, None]).flatten(1).T
        if extra is not None:
            v = gelu(down.weight @ extra + down.bias)
            if below_extra is not None:
                v = v + below_extra
            below_extra = gelu(rung.conv.weight[:, :, 1, 1] @ v
                               + rung.conv.bias)
            token = up.weight @ below_extra + up.bias
            delta = torch.cat((token[None], delta))
        deltas.append(rung.scale * delta)
    return deltas


@pytest.mark.parametrize('with_extra', [False, True])
@pytest.mark.parametrize('grids', [[(5, 4), (5, 4), (5, 4)],
                                   [(6, 8), (3, 4), (2, 2)],
                                   [(5, 7), (3, 4), (1, 1)]])
def test_plugin_neck_is_its_equation(grids: list, with_extra: bool) -> None:
    rungs = [SideLadder(DIMS, 4, scale=.7).double() for _ in grids]
    for seed, rung in enumerate(rungs):
        fill(rung, 0.5, seed)
    levels = [
        tokens(1, h * w, seed).transpose(1, 2).reshape(DIMS, h, w)
        for seed, (h, w) in enumerate(grids)
    ]
    extras = [tokens(1, 1, 9 + i)[0, 0] if with_extra else None
              for i in range(3)]
    state = None
    for rung, level, extra, grid, expected in zip(
            rungs, levels, extras, grids, climb(rungs, levels, extras)):
        x = level.flatten(1).T
        if with_extra:
            x = torch.cat((extra[None], x))
        delta, state = rung(x[None], grid, state)
        torch.testing.assert_close(delta[0], expected)


# ------------------------------------------------------- what kinds share


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    num=st.integers(1, 5),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    extra=st.integers(0, 2),
    per_picture=st.booleans())
def test_wide_is_the_loop_with_all_gradients(kind: str, num: int, grid: tuple,
                                             extra: int,
                                             per_picture: bool) -> None:
    torch.manual_seed(0)
    adapters = make(kind, num)
    x = tokens(3, extra + grid[0] * grid[1]).requires_grad_()
    gates = torch.rand(3, num) if per_picture else torch.rand(num)
    gates = gates.double().requires_grad_()
    inputs = [x, gates, *(p for a in adapters for p in a.parameters())]
    loop = weighed(adapters, gates, x, grid)
    wide = delta_of(type(adapters[0]).wide(adapters, gates, x, grid))
    torch.testing.assert_close(wide, loop)
    cotangent = torch.randn_like(loop)
    torch.testing.assert_close(
        torch.autograd.grad(wide, inputs, cotangent),
        torch.autograd.grad(loop, inputs, cotangent))


@pytest.mark.parametrize('per_picture', [False, True])
def test_a_wide_ladder_is_the_loop_with_all_gradients(
        per_picture: bool) -> None:
    torch.manual_seed(0)
    grids = [(4, 6), (2, 3), (2, 3)]
    ladders = [make('neck', seed=10 * level) for level in range(3)]
    levels = [tokens(2, 1 + h * w, h) for h, w in grids]
    rows = [torch.rand(2, 3) if per_picture else torch.rand(3)
            for _ in grids]
    rows = [row.double().requires_grad_() for row in rows]
    wide, state, states = [], None, [None] * 3
    loop = []
    for rungs, x, grid, row in zip(ladders, levels, grids, rows):
        delta, state = SideLadder.wide(rungs, row, x, grid, state)
        wide.append(delta)
        results = [rung(x, grid, s) for rung, s in zip(rungs, states)]
        states = [s for _, s in results]
        loop.append(
            sum(row[..., k].reshape(-1, 1, 1) * d
                for k, (d, _) in enumerate(results)))
    torch.testing.assert_close(wide, loop)
    inputs = rows + [p for rungs in ladders for a in rungs
                     for p in a.parameters()]
    grads = [
        torch.autograd.grad(sum(d.sin().sum() for d in deltas), inputs)
        for deltas in (wide, loop)
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize('kind', KINDS)
def test_fresh_is_exactly_zero_and_learns(kind: str) -> None:
    for cfg in CFGS[kind]:
        adapter = build_adapter(cfg, DIMS)
        delta = delta_of(adapter(tokens().float(), (2, 3)))
        assert torch.equal(delta, torch.zeros(2, 7, DIMS))
        delta.sum().backward()
        assert adapter.up.weight.grad.abs().sum() > 0


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('width', [None, 5])
def test_folding_is_the_gated_ensemble(kind: str,
                                       width: Optional[int]) -> None:
    adapters = make(kind)
    gates = torch.tensor([.3, 1.2, -.4]).double()
    before = [p.clone() for a in adapters for p in a.parameters()]
    folded = type(adapters[0]).fold(adapters, gates, width)
    assert type(folded) is type(adapters[0]) and not folded.training
    x = tokens()
    expected = weighed(adapters, gates, x, (2, 3))
    torch.testing.assert_close(delta_of(folded(x, (2, 3))), expected)
    after = [p for a in adapters for p in a.parameters()]
    assert all(map(torch.equal, before, after))
    # its config builds its like, and it is an adapter like any other
    dims = (DIMS, OUT) if kind == 'lora' else DIMS
    other = build_adapter(folded.cfg(), dims).double()
    other.load_state_dict(folded.state_dict())
    torch.testing.assert_close(delta_of(other(x, (2, 3))), expected)
    again = type(folded).fold([folded, adapters[0]],
                              torch.tensor([2., 1.]).double())
    torch.testing.assert_close(
        delta_of(again(x, (2, 3))),
        2 * expected + delta_of(adapters[0](x, (2, 3))))


def test_a_folded_ladder_is_the_gated_ensemble() -> None:
    ladders = [make('neck', seed=10 * level) for level in range(2)]
    rows = torch.tensor([[.5, 0., 1.], [0., 2., -1.]]).double()
    state = folded_state = None
    for rungs, row in zip(ladders, rows):
        x = tokens(2, 12)
        wide, state = SideLadder.wide(rungs, row, x, (3, 4), state)
        folded = SideLadder.fold(rungs, row, width=4)
        delta, folded_state = folded(x, (3, 4), folded_state)
        torch.testing.assert_close(delta, wide)


@pytest.mark.parametrize('kind', KINDS)
def test_merging_averages_parameters(kind: str) -> None:
    cfg, dims = CFGS[kind][1], (DIMS, OUT) if kind == 'lora' else DIMS
    adapters = [build_adapter(cfg, dims).double() for _ in range(3)]
    mean = build_adapter(cfg, dims).double()
    gates, x = torch.tensor([.2, .3, .5]).double(), tokens()
    for seed, adapter in enumerate(adapters):
        fill(adapter, 0.5, seed)
    for key, value in mean.named_parameters():
        value.data = sum(g * a.get_parameter(key).data
                         for g, a in zip(gates, adapters))
    merged = type(mean).merged(adapters, gates, x, (2, 3))
    torch.testing.assert_close(delta_of(merged), delta_of(mean(x, (2, 3))))
    with pytest.raises(ValueError, match='differ from image to image'):
        type(mean).merged(adapters, gates.expand(2, 3), x, (2, 3))


@pytest.mark.parametrize('kind', KINDS)
def test_what_differs_in_width_or_scale_is_not_merged(kind: str) -> None:
    gates = torch.ones(2).double()
    cls = type(make(kind)[0])
    a, b, c = make(kind)
    with pytest.raises(ValueError, match='no common parameters'):
        cls.merged([b, c], gates, tokens(), (2, 3))
    loud = build_adapter(dict(b.cfg(), **(dict(alpha=9.) if kind == 'lora'
                                          else dict(scale=9.))),
                         (DIMS, OUT) if kind == 'lora' else DIMS).double()
    with pytest.raises(ValueError, match=f'{cls.__name__} .* output scales'):
        cls.merged([b, loud], gates, tokens(), (2, 3))


def test_what_does_not_fit_is_not_folded() -> None:
    a, b = ConvPass(DIMS, 3), ConvPass(DIMS, 4)
    with pytest.raises(ValueError, match='cannot be folded'):
        ConvPass.fold([a, b], torch.ones(2))
    with pytest.raises(ValueError, match='width=1 is too small'):
        ConvPass.fold([a, a], torch.ones(2), width=1)
    with pytest.raises(ValueError, match='cannot be folded'):
        BottleneckAdapter.fold(
            [BottleneckAdapter(DIMS), BottleneckAdapter(DIMS, act='ReLU')],
            torch.ones(2))
    with pytest.raises(ValueError, match="act='Tanh' is unknown"):
        BottleneckAdapter(DIMS, act='Tanh')


@pytest.mark.parametrize('kind', ['ConvPass', 'BottleneckAdapter'])
def test_only_lora_changes_the_width(kind: str) -> None:
    with pytest.raises(ValueError, match=f'{kind} cannot .* 6 .* to 9; .*LoR'):
        build_adapter(dict(type=kind), [DIMS, OUT])
    assert LoRA([DIMS, OUT]).up.weight.shape == (OUT, 8)


# ----------------------------------------------------------------- the bank


@pytest.mark.parametrize('per_picture', [False, True])
def test_a_bank_of_all_kinds_is_the_loop(per_picture: bool) -> None:
    bank, x = AdapterBank(), tokens(3)
    for kind in ('conv', 'bottleneck', 'lora'):
        for index, cfg in enumerate(CFGS[kind]):
            name = f'{kind}{index}'
            bank.add(name, cfg, {'s': DIMS})
            fill(bank.members[name], 0.5, index)
    bank.double()
    names = bank.names[::-2] + bank.names[::2]
    names = list(dict.fromkeys(names))
    gates = torch.rand(len(x), len(names)).double()
    gates = gates if per_picture else gates[0]
    adapters = [bank.adapter(name, 's') for name in names]
    torch.testing.assert_close(
        bank('s', x, (2, 3), names, gates),
        weighed(adapters, gates, x, (2, 3)))
    torch.testing.assert_close(
        bank('s', x, (2, 3), names[:1], gates[..., :1]),
        weighed(adapters[:1], gates[..., :1], x, (2, 3)))


def test_a_bank_hands_the_states_of_ladders_on() -> None:
    bank, slots = AdapterBank(), {'outputs.0': DIMS, 'outputs.1': DIMS}
    for index, hidden in enumerate((3, 4, 3)):
        bank.add(f'm{index}', dict(type='SideLadder', hidden_dims=hidden),
                 slots)
        fill(bank.members[f'm{index}'], 0.5, index)
    bank.double()
    gates = torch.rand(3).double()
    states, alone = {}, [{} for _ in range(3)]
    for slot, x in zip(slots, (tokens(2, 12), tokens(2, 6))):
        args = (slot, x, (3, x.shape[1] // 3))
        loop = sum(g * bank(*args, [name], None, states=own)
                   for g, name, own in zip(gates, bank.names, alone))
        torch.testing.assert_close(
            bank(*args, bank.names, gates, states=states), loop)
    assert len(states) == 2
