# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""How far low precision may lead away, and that the same run is the same.

A number that is rounded to b bits is off by 2^-b of itself at most: that is
the unit ``u``, with b = 8 for bfloat16 and 11 for float16. Errors of n
roundings in a row, independent of each other, add up to about u sqrt(n / 3)
of the result: 2 u for the about 10 roundings of an adapter or an expert, 4 u
for the about 50 of a trunk of three blocks with modules. The bounds are twice
that. An operation that loses more, such as a sum over many numbers that is
kept in low precision, or a softmax of it, is beyond them.
"""

from typing import Callable, List

import pytest
import torch
from _moe_tiny import build_moe
from torch import Tensor, nn

from _recompute import backbone_of, pictures
from _tiny import fill
from vim_mm.models.adapters import build_adapter
from vim_mm.models.moe import moe_layers
from vim_mm.models.tasks import select_task

UNITS = {torch.bfloat16: 2.**-8, torch.float16: 2.**-11}
LAYER, TRUNK = 4, 8
ADAPTERS = dict(
    conv=dict(type='ConvPass', hidden_dims=8),
    groups=dict(type='ConvPass', hidden_dims=8, groups=2, scale=2.),
    bottleneck=dict(type='BottleneckAdapter', hidden_dims=8),
    lora=dict(type='LoRA', rank=4),
    ladder=dict(type='SideLadder', hidden_dims=8))
FUSIONS = ['EnsMoE', 'LinearMoE', 'RoutedMoE', 'ParameterMerge', 'FixedFusion']

low_precision = pytest.mark.parametrize('dtype', UNITS, ids=str)


def deviation(run: Callable[[], List[Tensor]],
              dtype: torch.dtype) -> List[float]:
    """Of each result under autocast, in units, relative to its norm."""
    exact = run()
    with torch.autocast('cpu', dtype):
        low = run()
    assert len(exact) == len(low)
    return [
        float((a.float() - b).norm() / b.norm() / UNITS[dtype])
        for a, b in zip(low, exact)
    ]


def check(found: List[float], bound: float) -> None:
    # what is rounded at all is not equal
    assert all(0.1 < each < bound for each in found), found


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@low_precision
@pytest.mark.parametrize('kind', ADAPTERS)
def test_adapters(kind: str, dtype: torch.dtype) -> None:
    adapter = build_adapter(ADAPTERS[kind], 64)
    fill(adapter, .2)
    params, x = list(adapter.parameters()), tokens(2, 17, 64)

    def run() -> List[Tensor]:
        delta = adapter(x, (4, 4))
        delta = delta[0] if isinstance(delta, tuple) else delta
        loss = (delta.float() * torch.flip(x, [2])).sum()
        return [delta, *torch.autograd.grad(loss, params)]

    delta, *grads = deviation(run, dtype)
    check([delta], LAYER)
    check(grads, TRUNK)


@low_precision
@pytest.mark.parametrize('fusion', FUSIONS)
def test_fusions_over_a_trunk(fusion: str, dtype: torch.dtype) -> None:
    backbone = backbone_of(fusion=fusion, drop_rate=0.).eval()
    backbone.select_task('x')
    x = pictures()
    with torch.no_grad():
        check(deviation(lambda: list(backbone(x)), dtype), TRUNK)


@low_precision
@pytest.mark.parametrize('attention', [False, True])
def test_experts(attention: bool, dtype: torch.dtype) -> None:
    """Routers compute in float32, so the same experts are chosen."""
    trunk = build_moe(attention=attention)
    select_task(trunk, 'seg')
    x = tokens(2, 16, 32)
    for layer in moe_layers(trunk).values():
        with torch.no_grad():
            check(deviation(lambda: [layer(x)], dtype), LAYER)


# ---------------------------------------------------------------- determinism


def test_the_same_again() -> None:
    """Two models of one seed, trained alike, are one, bit for bit."""
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        backbone = backbone_of()
        torch.manual_seed(4)  # its modules drop out
        optimizer = torch.optim.AdamW(
            [p for p in backbone.parameters() if p.requires_grad], 1e-2)
        for step in range(3):
            optimizer.zero_grad()
            loss = sum(level.square().mean() for level in backbone(pictures()))
            loss.backward()
            optimizer.step()
        results.append(backbone.state_dict())
    assert all(torch.equal(results[0][k], results[1][k]) for k in results[0])
    first = nn.utils.parameters_to_vector(backbone_of().bank.parameters())
    last = nn.utils.parameters_to_vector(backbone.bank.parameters())
    assert not torch.equal(first, last)
