# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Attention made of experts against a token-by-token reference."""

from typing import List, Optional

import pytest
import torch
from torch import Tensor, nn

from vim_mm.models.moe import MoEAttention
from vim_mm.models.tasks import select_task

DIMS, HEAD = 16, 8


def layer(num_experts: int = 6, k: int = 2, dispatch: str = 'loop',
          tasks: Optional[List[str]] = None, **kwargs) -> MoEAttention:
    torch.manual_seed(0)
    moe = MoEAttention(
        DIMS, HEAD, num_experts, k, tasks, dispatch=dispatch, **kwargs)
    for param in moe.parameters():
        nn.init.normal_(param, std=.3)
    return moe


def reference(moe: MoEAttention, x: Tensor) -> Tensor:
    """One image, one token and one expert at a time."""
    w1, b1, w2, b2 = moe.experts.weights(moe.router.num_experts)
    images = []
    for tokens in x:
        keys, values = moe.kv(tokens).split(HEAD, -1)
        rows = []
        for token in tokens:
            p = moe.router.net(token).softmax(-1)
            out = 0
            for e in p.argsort(descending=True)[:moe.k].tolist():
                query = w1[e] @ token + b1[e]
                seen = (keys @ query / HEAD**.5).softmax(0)
                out = out + p[e] * (w2[e] @ (values.t() @ seen) + b2[e])
            rows.append(out * moe.gate_scale)
        images.append(torch.stack(rows))
    return torch.stack(images)


@pytest.mark.parametrize('dispatch', ['loop', 'grouped', 'dense', 'auto'])
@pytest.mark.parametrize('router', ['linear', 'mlp'])
@pytest.mark.parametrize('k', [1, 2, 6])
def test_equals_sum_over_experts(dispatch: str, router: str, k: int) -> None:
    moe = layer(k=k, dispatch=dispatch, router=router, gate_scale=1.5)
    x = torch.randn(3, 7, DIMS, requires_grad=True)
    cotangent = torch.randn(3, 7, DIMS)
    leaves = [x, *moe.parameters()]
    y, expected = moe(x), reference(moe, x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(
        torch.autograd.grad(y, leaves, cotangent),
        torch.autograd.grad(expected, leaves, cotangent))


@pytest.mark.parametrize('dispatch', ['loop', 'dense'])
def test_gradients(dispatch: str) -> None:
    moe = layer(dispatch=dispatch).double()
    x = torch.randn(2, 4, DIMS, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(moe, (x, ))


def test_images_do_not_see_each_other() -> None:
    moe = layer()
    x = torch.randn(3, 5, DIMS)
    torch.testing.assert_close(moe(x)[1:2], moe(x[1:2]))


def test_each_task_has_its_router() -> None:
    moe = layer(tasks=['a', 'b'])
    x = torch.randn(2, 5, DIMS)
    first = moe(x)
    select_task(moe, 'b')
    assert not torch.equal(moe(x), first)
    moe(x).sum().backward()
    assert not moe.routers['a'].net.weight.grad.any()
    assert moe.routers['b'].net.weight.grad.any() and moe.kv.weight.grad.any()


def test_experts_come_and_go_as_in_any_layer() -> None:
    moe = layer(num_experts=8, tasks=['a'])
    x = torch.randn(1, 5, DIMS)
    expected = moe(x)
    moe.add_task('b', num_experts=2)
    assert torch.equal(moe(x), expected)
    chosen = moe.choose(moe.router(x.flatten(0, 1)))[1].flatten().tolist()
    moe.keep_tasks(['a'])
    moe.keep(sorted(set(chosen) | {0}))
    assert len(moe.experts) < 8 and torch.equal(moe(x), expected)


def test_autocast() -> None:
    moe = layer()
    x = torch.randn(2, 5, DIMS)
    with torch.autocast('cpu', torch.bfloat16):
        y = moe(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), moe(x), rtol=.05, atol=.1)


def test_attention_drops_in_training_only() -> None:
    moe = layer(attn_drop=.5)
    x = torch.randn(2, 5, DIMS)
    assert not torch.equal(moe(x), moe(x))
    moe.eval()
    assert torch.equal(moe(x), moe(x))
    torch.testing.assert_close(moe(x), reference(moe, x))


@pytest.mark.parametrize('way', ['export', 'trace'])
def test_exporters_get_every_expert(way: str) -> None:
    moe = layer().eval()
    x = torch.randn(2, 5, DIMS)
    if way == 'export':
        exported = torch.export.export(moe, (x, )).module()
    else:
        exported = torch.jit.trace(moe, x)
    for _ in range(3):
        x = torch.randn(2, 5, DIMS)
        torch.testing.assert_close(exported(x), moe(x))
