# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Packed modules are the same function as the loop over them."""

from typing import Any, Dict, List, Tuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from _packing import SLOTS, Case, build_case

ACTS = ['GELU', 'QuickGELU', 'ReLU', 'SiLU']
KINDS: Dict[str, dict] = dict(
    ConvPass=dict(type='ConvPass', hidden_dims=4),
    grouped=dict(type='ConvPass', hidden_dims=4, groups=2),
    LoRA=dict(type='LoRA', rank=3),
    PluginNeck=dict(type='PluginNeck', hidden_dims=4),
    **{act: dict(type='BottleneckAdapter', act=act) for act in ACTS})

scales = st.sampled_from([1., 0.5, -2.])


@st.composite
def adapters(draw: Any, beside: bool) -> dict:
    """Config of a kind that sits inside the trunk, or beside it."""
    kind = 'PluginNeck' if beside else draw(
        st.sampled_from(['ConvPass', 'BottleneckAdapter', 'LoRA']))
    if kind == 'LoRA':
        return dict(
            type=kind,
            rank=draw(st.integers(1, 5)),
            alpha=draw(st.sampled_from([None, 2, 16])))
    cfg = dict(type=kind, scale=draw(scales))
    if kind == 'BottleneckAdapter':
        return dict(
            cfg,
            hidden_dims=draw(st.integers(1, 6)),
            act=draw(st.sampled_from(ACTS)))
    groups = draw(st.sampled_from([1, 1, 2]))
    return dict(
        cfg, groups=groups, hidden_dims=groups * draw(st.integers(1, 3)))


@st.composite
def fusions(draw: Any, names: List[str], merge: bool) -> dict:
    """Config of a fusion of two tasks; every second one drops modules."""
    subset = st.lists(
        st.sampled_from(names), min_size=1, unique=True, max_size=len(names))
    cfg: dict = dict(tasks=dict(x=draw(subset), y=draw(subset)))
    weights = st.sampled_from([0., 0., 1., -0.5])
    given_weights = {name: draw(weights) for name in names}
    if merge:
        return draw(
            st.sampled_from([
                dict(cfg, type='ParameterMerge'),
                dict(cfg, type='FixedMerge', weights=given_weights)
            ]))
    kind = draw(
        st.sampled_from(['EnsMoE', 'RoutedMoE', 'LinearMoE', 'FixedFusion']))
    if kind == 'FixedFusion':
        return dict(cfg, type=kind, weights=given_weights)
    cfg.update(type=kind, learn=draw(st.booleans()))
    if kind != 'LinearMoE':
        cfg.update(
            top_k=draw(st.sampled_from([None, 1, 2])),
            zero_module=draw(st.booleans()))
    return cfg


@st.composite
def cases(draw: Any) -> Case:
    number = draw(st.integers(1, 5))
    beside = draw(st.booleans())
    kind = draw(st.sampled_from(['none', 'fusion', 'fusion', 'merge']))
    some = st.lists(
        st.sampled_from(SLOTS), min_size=1, unique=True).map(sorted)
    if kind == 'merge':  # only what is alike can be
        beside = False
        cfgs = [draw(adapters(False))] * number
        occupied = [draw(some)] * number
    else:
        cfgs = [draw(adapters(beside)) for _ in range(number)]
        occupied = [draw(some) for _ in range(number)]
    names = [f'm{index}' for index in range(number)]
    fusion = task = None
    batch = draw(st.integers(1, 3))
    if kind != 'none':
        fusion = draw(fusions(names, kind == 'merge'))
        one = st.sampled_from('xy')
        task = draw(one)
        if kind == 'fusion' and fusion['type'] != 'RoutedMoE' and draw(
                st.booleans()):
            task = [draw(one) for _ in range(batch)]
    side = st.integers(1, 4)
    case = build_case(
        cfgs,
        fusion,
        task,
        occupied,
        learns=[draw(st.booleans()) for _ in names],
        grid=(draw(side), draw(side)),
        extra=draw(st.sampled_from([0, 1, 5])),
        batch=batch)
    if fusion is not None and fusion['type'] == 'LinearMoE':
        with torch.no_grad():  # what is switched off
            case.fusion.logits['x'][:, 0] = 0
    return case


def close(got: Dict[str, Tensor], expected: Dict[str, Tensor]) -> None:
    for slot in SLOTS:
        # what weighs nothing is not run at all
        one, two = (deltas.get(slot, torch.zeros(())) for deltas in
                    (got, expected))
        one, two = torch.broadcast_tensors(one, two)
        torch.testing.assert_close(
            one.double(), two.double(), rtol=1e-10, atol=1e-10)


def gradients(case: Case, deltas: Dict[str, Tensor]) -> List[Tensor]:
    parts = [case.bank] + ([] if case.fusion is None else [case.fusion])
    params = [p for m in parts for p in m.parameters() if p.requires_grad]
    total = sum(delta.square().sum() for delta in deltas.values())
    if not params or not (isinstance(total, Tensor) and total.requires_grad):
        return []
    grads = torch.autograd.grad(total, params, allow_unused=True)
    return [
        torch.zeros_like(param) if grad is None else grad
        for param, grad in zip(params, grads)
    ]


@settings(max_examples=150, deadline=None)
@given(cases())
def test_loop_wide_and_packed_are_one_function(case: Case) -> None:
    with torch.no_grad():
        expected = case.loop()
        close(case.wide(), expected)
        close(case.packed(), expected)
        # a module in double precision is not cast, whatever autocast asks for
        close(case.packed(torch.bfloat16), expected)
    with torch.inference_mode():
        close(case.packed(), expected)
    reference, packed = case.loop(), case.packed()
    close(packed, reference)
    for got, grad in zip(
            gradients(case, packed), gradients(case, reference), strict=True):
        torch.testing.assert_close(got, grad, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(cases())
def test_loop_and_compiled_are_one_function(case: Case) -> None:
    """Fewer examples: each compiles a graph of its own."""
    with torch.no_grad():
        close(case.compiled(), case.loop())


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('number', range(1, 17))
@pytest.mark.parametrize('fusion', ['EnsMoE', 'RoutedMoE', None])
def test_packing_changes_no_bit(kind: str, number: int, fusion: str) -> None:
    cfg = fusion and dict(type=fusion, tasks=['x'])
    case = build_case([KINDS[kind]] * number, cfg, fusion and 'x', extra=5,
                      dims=32, dtype=torch.float32)
    with torch.no_grad():
        packed, wide = case.packed(), case.wide()
    assert list(packed) == list(wide) == SLOTS
    assert all(torch.equal(packed[slot], wide[slot]) for slot in SLOTS)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('number', [1, 4, 16])
def test_gradients_of_gates_and_new_modules(kind: str, number: int) -> None:
    case = build_case([KINDS[kind]] * (number + 1),
                      dict(type='EnsMoE', tasks=['x']),
                      'x',
                      learns=[False] * number + [True],
                      dtype=torch.float32,
                      std=0.2)
    got, expected = (
        gradients(case, deltas) for deltas in (case.packed(), case.wide()))
    assert len(got) > 1 and all(grad.any() for grad in expected)
    for one, two in zip(got, expected, strict=True):
        torch.testing.assert_close(
            one, two, rtol=1e-5, atol=1e-6 * float(two.abs().max()))


def errors(case: Case, exact: Case) -> Tuple[float, float]:
    """Mean deviation of packed and wide deltas under autocast."""
    with torch.no_grad():
        expected = exact.loop()
        with torch.autocast('cpu', torch.bfloat16):
            runs = case.packed(torch.bfloat16), case.wide()
    return tuple(
        sum(float((deltas[slot] - expected[slot]).abs().mean())
            for slot in SLOTS) for deltas in runs)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('number', [1, 2, 4, 16])
@pytest.mark.parametrize('task', ['x', ['x', 'y']], ids=['one', 'mixed'])
def test_low_precision_is_no_farther_from_exact(kind: str, number: int,
                                                task: str) -> None:
    args = [KINDS[kind]] * number, dict(type='EnsMoE', tasks=['x', 'y']), task
    size: dict = dict(dims=64, grid=(6, 5), std=0.2)
    packed, wide = errors(
        build_case(*args, dtype=torch.float32, **size),
        build_case(*args, **size))
    assert 0 < packed <= 1.5 * wide
