# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A layer of experts against a token-by-token reference; its groups."""

from copy import deepcopy
from typing import List, Optional

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vim_mm.models.moe import MoEMlp
from vim_mm.models.tasks import learn_tasks, select_task

DIMS = 16


def layer(num_experts: int = 6, k: int = 2, dispatch: str = 'loop',
          tasks: Optional[List[str]] = None, **kwargs) -> MoEMlp:
    torch.manual_seed(0)
    moe = MoEMlp(
        DIMS, 8, num_experts, k, tasks, dispatch=dispatch, **kwargs)
    for param in moe.parameters():
        nn.init.normal_(param, std=.3)
    return moe


def reference(moe: MoEMlp, x: Tensor) -> Tensor:
    """One token and one expert at a time."""
    w1, b1, w2, b2 = moe.experts.weights(moe.router.num_experts)
    p = moe.router.net(x).softmax(-1)
    rows = []
    for token, probabilities in zip(x, p):
        best = probabilities.argsort(descending=True)[:moe.k]
        rows.append(
            sum(probabilities[e] *
                (w2[e] @ F.gelu(w1[e] @ token + b1[e]) + b2[e])
                for e in best.tolist()) * moe.gate_scale)
    return torch.stack(rows)


@pytest.mark.parametrize('dispatch', ['loop', 'grouped', 'dense', 'auto'])
@pytest.mark.parametrize('router', ['linear', 'mlp'])
@pytest.mark.parametrize('k', [1, 2, 6])
def test_equals_sum_over_experts(dispatch: str, router: str, k: int) -> None:
    moe = layer(k=k, dispatch=dispatch, router=router, gate_scale=1.5)
    x = torch.randn(40, DIMS, requires_grad=True)
    cotangent = torch.randn(40, DIMS)
    leaves = [x, *moe.parameters()]
    y = moe(x)
    expected = reference(moe, x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(
        torch.autograd.grad(y, leaves, cotangent),
        torch.autograd.grad(expected, leaves, cotangent))


def test_k_of_all_is_the_full_mixture() -> None:
    moe = layer(k=6)
    x = torch.randn(2, 5, DIMS)
    w1, b1, w2, b2 = moe.experts.weights(6)
    h = F.gelu(torch.einsum('bnc,ehc->bneh', x, w1) + b1)
    every = torch.einsum('bneh,ech->bnec', h, w2) + b2
    p = moe.router.net(x).softmax(-1)
    torch.testing.assert_close(moe(x), (p.unsqueeze(-1) * every).sum(2))


@pytest.mark.parametrize('dispatch', ['loop', 'dense'])
def test_gradients_of_gradients(dispatch: str) -> None:
    moe = layer(dispatch=dispatch).double()
    x = torch.randn(5, DIMS, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(moe, (x, ))
    assert torch.autograd.gradgradcheck(moe, (x, ))


def test_each_task_has_its_router() -> None:
    moe = layer(tasks=['a', 'b'])
    x = torch.randn(9, DIMS)
    first = moe(x)
    select_task(moe, 'b')
    assert not torch.equal(moe(x), first)
    select_task(moe, 'a')
    y = moe(x)
    assert torch.equal(y, first)
    y.sum().backward()
    assert moe.routers['a'].net[0].weight.grad.abs().sum() > 0
    # every process waits for the same parameters
    assert all(not p.grad.any() for p in moe.routers['b'].parameters())


def test_tasks_that_do_not_learn() -> None:
    moe = layer(tasks=['a', 'b'])
    learn_tasks(moe, ['b'])
    assert not any(p.requires_grad for p in moe.routers['a'].parameters())
    with pytest.raises(ValueError, match="'a' runs in training"):
        moe(torch.randn(3, DIMS))
    moe.eval()(torch.randn(3, DIMS))


@pytest.mark.parametrize('index, sizes', [([0], [1, 5]), ([2], [2, 1, 3]),
                                          ([0, 2, 4], [1] * 6), ([], [6]),
                                          ([4, 5], [4, 2])])
def test_groups_change_no_bit(index: List[int], sizes: List[int]) -> None:
    moe = layer()
    x = torch.randn(30, DIMS)
    expected = moe(x)
    moe.experts.split(index)
    assert [len(group) for group in moe.experts.groups] == sizes
    assert torch.equal(moe(x), expected)
    # groups are never joined, and none is made anew without need
    before = list(moe.experts.groups)
    moe.experts.split(index)
    assert list(moe.experts.groups) == before


def test_dropped_experts_that_nobody_chose() -> None:
    moe = layer(num_experts=8)
    x = torch.randn(12, DIMS)
    p = moe.router(x)
    chosen = sorted(set(moe.choose(p)[1].flatten().tolist()))
    kept = sorted(set(chosen) | {0})
    small = deepcopy(moe)
    small.keep(kept)
    assert len(small.experts) == len(kept) < 8
    assert torch.equal(small(x), moe(x))


def test_new_experts_leave_old_tasks_alone() -> None:
    moe = layer(tasks=['a', 'b'])
    x = torch.randn(20, DIMS)
    expected = moe(x)
    moe.add_task('c', num_experts=2)
    assert torch.equal(moe(x), expected)
    select_task(moe, 'c')
    assert moe.router(x).shape == (20, 8)
    select_task(moe, 'a')
    moe(x).sum().backward()
    assert not moe.experts.groups[1].w1.grad.any()


@pytest.mark.parametrize('kwargs, words', [
    (dict(k=7), '`k` is 7, but there are 6'),
    (dict(k=0), 'a whole number from 1 to 6'),
    (dict(k=2.), r'`k` is 2\.0, but'),
    (dict(num_experts=0), '`num_experts` is 0; give'),
    (dict(router='deep'), "'linear' or 'mlp'"),
    (dict(dispatch='fast'), 'loop, grouped, dense'),
    (dict(tasks=['a.b']), 'cannot name a task'),
    (dict(tasks='a'), 'give a list of names'),
    (dict(tasks=['a', 'a']), "names 'a' twice"),
])
def test_mistakes(kwargs: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        layer(**kwargs)
