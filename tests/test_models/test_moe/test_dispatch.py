# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The ways to run experts agree, bit for bit where they can; what torch's
``grouped_mm`` does to its callers does not reach ours."""

from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (DataDependentOutputException,
                                           FakeTensorMode)

from _tiny import first_of
from vim_mm.models.moe import (Experts, MoEMlp, Route, segment_mm, segments,
                               sum_rows, take_rows)
from vim_mm.models.moe.segments import can_group, one_hot, owners
from vim_mm.models.tasks import select_task

FLOAT, BF16, HALF = torch.float32, torch.bfloat16, torch.float16

if not hasattr(F, 'grouped_mm'):
    pytest.skip('torch has no grouped_mm', allow_module_level=True)


@pytest.fixture
def no_initial_values() -> Iterator[None]:
    """Memory that nobody initialises is full of NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> List[Tensor]:
    """What torch's ``grouped_mm`` gave so far."""
    seen, original = [], F.grouped_mm

    def spy(*args, **kwargs) -> Tensor:
        seen.append(original(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(F, 'grouped_mm', spy)
    return seen


def experts(way: str,
            dims: int = 32,
            hidden: int = 16,
            groups: Sequence[int] = (6, ),
            dtype: torch.dtype = FLOAT) -> Experts:
    torch.manual_seed(0)
    model = Experts(dims, hidden, groups, dispatch=way)
    for param in model.parameters():
        nn.init.normal_(param, std=.3)
    return model.to(dtype)


def inputs(num: int,
           k: int = 2,
           num_experts: int = 6,
           dims: int = 32,
           dtype: torch.dtype = FLOAT,
           only: Optional[Sequence[int]] = None) -> Tuple[Tensor, ...]:
    """Tokens, gates, and experts: those of ``only``, or any."""
    g = torch.Generator().manual_seed(1)
    p = torch.rand(num, num_experts, generator=g)
    if only is not None:
        p[:, list(only)] += 1
    gates, index = p.topk(k, -1)
    x = torch.randn(num, dims, generator=g).to(dtype)
    return x.requires_grad_(), gates.to(dtype).requires_grad_(), index


def results(model: Experts,
            x: Tensor,
            gates: Tensor,
            index: Tensor,
            cotangent: Optional[Tensor] = None,
            num: Optional[int] = None) -> List[Tensor]:
    """The output, and the gradients of inputs and parameters."""
    y = model(x, gates, index, num)
    if cotangent is None:
        g = torch.Generator().manual_seed(2)
        cotangent = torch.randn(y.shape, generator=g).to(y.dtype)
    grads = torch.autograd.grad(
        y, [x, gates, *model.parameters()], cotangent, materialize_grads=True)
    return [y, *grads]


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return len(first) == len(second) and all(
        a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(first, second))


def both(*args: Tensor, **kwargs) -> Tuple[List[Tensor], ...]:
    """Results of the loop and of grouped products."""
    return tuple(
        results(experts(way, **kwargs), *args) for way in ('loop', 'grouped'))


# ------------------------------------------------------------- bit-equality

CASES: Dict[str, dict] = {
    'usual': {},
    'no tokens': dict(num=0),
    'one token': dict(num=1),
    'one expert each': dict(k=1),
    'every expert': dict(k=6),
    'two of them idle': dict(only=[1, 2, 4, 5]),
    'first and last idle': dict(only=[2, 3]),
    'all to one': dict(k=1, only=[3]),
    'several groups': dict(groups=[3, 1, 2]),
    'wide and flat': dict(dims=8, hidden=64),
    'width of a fourth': dict(dims=12, hidden=20),
    'odd hidden width': dict(hidden=15),
    'odd width of tokens': dict(dims=31),
}


@pytest.mark.parametrize('dtype', [FLOAT, BF16, HALF])
@pytest.mark.parametrize('case', CASES.values(), ids=list(CASES))
def test_grouped_equals_loop(case: dict, dtype: torch.dtype) -> None:
    case = dict(case)
    shape = {key: case.pop(key) for key in ('num', 'k', 'only') if key in case}
    shape = dict(dict(num=50), **shape)
    tokens = inputs(**shape, dims=case.get('dims', 32), dtype=dtype)
    loop, grouped = both(*tokens, **case, dtype=dtype)
    assert same(loop, grouped)
    dense = results(experts('dense', **case, dtype=dtype), *tokens)
    loose = dict(rtol=4e-2, atol=.3) if dtype != FLOAT else dict()
    torch.testing.assert_close(grouped, dense, **loose)


@pytest.mark.parametrize('dtype, expected', [(FLOAT, 6), (BF16, 6), (HALF, 6),
                                             (torch.float64, 0)])
def test_grouped_products_do_run(dtype: torch.dtype, expected: int,
                                 products: List[Tensor]) -> None:
    """Two forward and four backward, where torch has them."""
    results(experts('grouped', dtype=dtype), *inputs(9, dtype=dtype))
    assert len(products) == expected
    assert all(product.is_contiguous() for product in products)
    results(experts('loop', dtype=dtype), *inputs(9, dtype=dtype))
    assert len(products) == expected


def test_a_narrow_router_reaches_the_first_experts_only() -> None:
    tokens = inputs(20, num_experts=4)
    loop, grouped = (
        results(experts(way, groups=[3, 1, 2]), *tokens, num=4)
        for way in ('loop', 'grouped'))
    assert same(loop, grouped)
    assert all(not grad.any() for grad in grouped[-4:])


# ------------------------------------------------- what grouped_mm would do


@pytest.mark.parametrize('dtype, width', [(FLOAT, 62), (BF16, 36), (HALF, 36)])
def test_trap_widths(dtype: torch.dtype, width: int,
                     products: List[Tensor]) -> None:
    """A width that it takes forward and refuses backward: the loop's turn."""
    loop, grouped = both(*inputs(20, dtype=dtype), hidden=width, dtype=dtype)
    assert same(loop, grouped) and not products


def test_trap_addresses() -> None:
    """Parameters that are views of one buffer may lie anywhere."""
    flat = torch.randn(1 + 6 * 32 * 16)
    weight, x = flat[1:].view(6, 32, 16), torch.randn(8, 32)
    ends = torch.tensor([2, 2, 5, 5, 8, 8], dtype=torch.int32)
    assert weight.data_ptr() % 16 and not can_group(x, weight, 32, 16)
    assert can_group(x, weight.clone(), 32, 16)
    assert same([segment_mm(x, weight, ends)],
                [segment_mm(x, weight.clone(), ends)])


def test_trap_double_precision() -> None:
    """It has none: the loop's turn."""
    tokens = inputs(5, dtype=torch.float64)
    loop, grouped = both(*tokens, dtype=torch.float64)
    assert same(loop, grouped)
    model = experts('grouped', dtype=torch.float64)
    x, gates, index = inputs(3, dtype=torch.float64)
    assert torch.autograd.gradcheck(model, (x, gates, index))
    assert torch.autograd.gradgradcheck(model, (x, gates, index))


@pytest.mark.parametrize('grouped', [False, True])
def test_trap_bias_and_offsets(grouped: bool) -> None:
    """It takes no bias, and no int64 offsets."""
    index = torch.tensor([[4], [1], [4], [0]])
    route = Route.of(index, 6)
    assert route.ends.dtype == torch.int32
    x, bias = torch.randn(4, 32), torch.randn(6, 8, requires_grad=True)
    weight = torch.randn(6, 32, 8)
    y = segment_mm(take_rows(x, route), weight, route.ends, grouped, bias)
    y = sum_rows(y, route)
    expected = torch.stack(
        [token @ weight[e] + bias[e] for token, e in zip(x, index.flatten())])
    torch.testing.assert_close(y, expected)
    cotangent = torch.randn_like(y)
    torch.testing.assert_close(
        torch.autograd.grad(y, bias, cotangent),
        torch.autograd.grad(expected, bias, cotangent))


@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize('way', ['loop', 'grouped', 'dense'])
@pytest.mark.parametrize('dtype', [BF16, HALF])
def test_trap_autocast(way: str, dtype: torch.dtype, frozen: bool) -> None:
    """Autocast passes it by: fp32 parameters are cast by hand."""
    x, gates, index = inputs(20)
    model = experts(way).requires_grad_(not frozen)
    low = experts(way, dtype=dtype)
    expected = low(x.to(dtype), gates.to(dtype), index)
    with torch.autocast('cpu', dtype):
        y = model(x, gates, index)
    assert y.dtype == dtype and torch.equal(y, expected)
    y.backward(torch.ones_like(y))
    assert x.grad.dtype == FLOAT
    for param in model.parameters():
        assert (param.grad is None) == frozen
        assert frozen or param.grad.dtype == FLOAT and param.grad.any()


@pytest.mark.parametrize('way', ['loop', 'grouped', 'dense'])
def test_autocast_leaves_double_precision_and_low_models_alone(
        way: str) -> None:
    for dtype in (torch.float64, BF16):
        tokens = inputs(20, dtype=dtype)
        model = experts(way, dtype=dtype)
        plain = results(model, *tokens)
        with torch.autocast('cpu', BF16):
            assert same(results(model, *tokens), plain)


@pytest.mark.parametrize('only', [[0, 1], [4, 5], [2, 3], range(6)])
def test_trap_rows_past_the_last_end(only: Sequence[int],
                                     no_initial_values: None) -> None:
    """They would be uninitialised: there are none, whoever is chosen."""
    x, gates, index = inputs(40, only=only)
    for way in ('loop', 'grouped'):
        for result in results(experts(way), x, gates, index):
            assert result.isfinite().all()
    route = Route.of(index, 6)
    assert route.ends[-1] == index.numel() == len(route.order)
    counts = torch.bincount(index.flatten(), minlength=6)
    assert torch.equal(route.ends, counts.cumsum(0).int())
    assert torch.equal(route.order[route.inverse], torch.arange(80))


@pytest.mark.parametrize('grad', ['expanded', 'transposed', 'strided'])
def test_trap_gradients_of_any_layout(grad: str) -> None:
    tokens = inputs(20)
    cotangent = dict(
        expanded=torch.ones(()).expand(20, 32),
        transposed=torch.randn(32, 20).t(),
        strided=torch.randn(20, 64)[:, ::2])[grad]
    loop, grouped = (
        results(experts(way), *tokens, cotangent)
        for way in ('loop', 'grouped'))
    copied = results(experts('loop'), *tokens, cotangent.clone())
    assert same(loop, grouped) and same(loop, copied)
    ends = torch.tensor([3, 3, 9], dtype=torch.int32)
    x, weight = torch.randn(32, 9).t(), torch.randn(3, 32, 8)
    weight.requires_grad_()
    segment_mm(x, weight, ends).sum().backward()
    expected = torch.stack(
        [x[a:b].sum(0) for a, b in ((0, 3), (3, 3), (3, 9))])
    torch.testing.assert_close(weight.grad[..., 0], expected)


@pytest.mark.parametrize('way', ['loop', 'grouped'])
def test_trap_idle_experts_and_no_tokens(way: str) -> None:
    model = experts(way)
    x, gates, index = inputs(30, only=[1, 2])
    model(x, gates, index).sum().backward()
    for param in model.parameters():
        assert [bool(grad.any()) for grad in param.grad
                ] == [False, True, True, False, False, False]
    with torch.inference_mode():
        assert model(x, gates, index).shape == (30, 32)
        assert model(*inputs(0)).shape == (0, 32)


# ------------------------------------------------------- rows and their sums


def test_gradients_of_rows_and_sums() -> None:
    x, gates, index = inputs(6, dims=5, dtype=torch.float64)
    route = Route.of(index, 6)

    def mixed(x: Tensor, gates: Tensor) -> Tensor:
        y = take_rows(x, route)
        return sum_rows(y * y, route, gates) + sum_rows(y, route)

    assert torch.autograd.gradcheck(mixed, (x, gates))
    assert torch.autograd.gradgradcheck(mixed, (x, gates))
    rows = torch.stack(
        [x[n] for e in range(6) for n, own in enumerate(index) if e in own])
    assert torch.equal(take_rows(x, route), rows)


def test_whose_row_it_is_without_waiting() -> None:
    """What a GPU runs in place of loops over experts."""
    _, _, index = inputs(30, only=[1, 4, 5])
    route = Route.of(index, 6)
    assert torch.equal(owners(route.ends, 60), route.experts)
    assert torch.equal(
        one_hot(route.ends, torch.empty(60, 1)),
        F.one_hot(route.experts, 6).float())


def test_trap_waiting_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read back; tensors are only pretended here."""
    monkeypatch.setattr(segments, 'can_group', lambda *_: True)
    monkeypatch.setattr(nn.init, 'trunc_normal_', lambda *_, **__: None)
    with FakeTensorMode():
        moe = MoEMlp(32, 16, 6, 2, ['a', 'b'], dispatch='grouped')
        moe(torch.randn(2, 9, 32)).sum().backward()
    with FakeTensorMode(), torch.device('cuda'):  # what its operators do
        x, y = torch.randn(18, 32), torch.randn(18, 16)
        weight, bias = torch.randn(6, 32, 16), torch.randn(6, 16)
        ends = torch.ones(6, dtype=torch.int32)
        args = [t.bfloat16() for t in (x, weight, bias)]
        segments._segment_mm._init_fn(*args, ends, True)
        segments._segment_outer._init_fn(args[0], y.bfloat16(), ends, True)
        segments._segment_sum._init_fn(x, ends)
        with pytest.raises(DataDependentOutputException):  # it would show
            segments._segment_mm._init_fn(*args, ends, False)


# ------------------------------------------------------------------ compiled


def layer(dtype: torch.dtype, way: str = 'grouped') -> MoEMlp:
    torch.manual_seed(0)
    moe = MoEMlp(32, 16, 6, 2, ['a', 'b', 'c'], dispatch=way)
    for param in moe.parameters():
        nn.init.normal_(param, std=.3)
    return moe.to(dtype)


def check_compiled(moe: MoEMlp, compiled: nn.Module, sizes: Sequence[int],
                   autocast: bool) -> None:
    """Outputs and gradients of changing routes against those of eager."""
    routes = set()
    for seed, size in enumerate(sizes):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(2, size, 32, generator=g)
        x = x.to(next(moe.parameters()).dtype).requires_grad_()
        leaves = [x, *moe.parameters()]
        pairs = []
        for model in (compiled, moe):
            with torch.autocast('cpu', BF16, enabled=autocast):
                y = model(x)
            pairs.append([y, *torch.autograd.grad(y, leaves, y.detach())])
        for ours, expected in zip(*pairs):
            assert ours.dtype == expected.dtype
            error = (ours - expected).norm()
            assert error <= (2e-2 if y.dtype == BF16 else 1e-5) * (
                expected.norm())
        p = moe.router(x.flatten(0, 1))
        routes.add(tuple(moe.choose(p)[1].flatten().bincount().tolist()))
    assert len(routes) > 1


@pytest.mark.parametrize('way', ['loop', 'grouped', 'dense'])
@pytest.mark.parametrize('dtype, autocast', first_of(
    [(FLOAT, True), (BF16, False), (FLOAT, False)], 2))
def test_trap_one_graph_whatever_the_route(way: str, dtype: torch.dtype,
                                           autocast: bool) -> None:
    """It cannot be traced in fp32: within an operator of ours it can."""
    torch._dynamo.reset()
    moe = layer(dtype, way)
    compiled = torch.compile(moe, backend='aot_eager', fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        check_compiled(moe, compiled, [20, 20, 20], autocast)


def test_one_graph_for_any_number_of_tokens() -> None:
    torch._dynamo.reset()
    moe = layer(FLOAT)
    compiled = torch.compile(
        moe, backend='aot_eager', fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        check_compiled(moe, compiled, [20, 33, 7], False)


def test_a_graph_for_each_task() -> None:
    torch._dynamo.reset()
    moe = layer(FLOAT)
    compiled = torch.compile(moe, backend='aot_eager', fullgraph=True)
    for task in ('a', 'b', 'a'):
        select_task(moe, task)
        check_compiled(moe, compiled, [20, 20], False)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [FLOAT, BF16])
def test_compiled_to_machine_code(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    moe = layer(dtype)
    check_compiled(moe, torch.compile(moe, fullgraph=True), [20, 20], False)
