# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Losses of routing against slow references; what they teach routers."""

import math
from typing import Dict, List

import pytest
import torch
from _routing import DIMS, TASKS, Trunk, bound, run, tokens, trunk
from torch import Tensor, nn

from _tiny import first_of, same, snapshot
from vim_mm.models.multitask import MutualInformation, mutual_information_loss
from vim_mm.models.tasks import select_task


def slow_information(rows: List[Tensor]) -> Tensor:
    """I(T;E) from its definition, term by term; rows are P(E|T)."""
    joint = [row / len(rows) for row in rows]
    total = 0.
    for row in joint:
        assert float(row.detach().sum()) == pytest.approx(1 / len(rows))
        for e, p in enumerate(row):
            p_e = sum(other[e] for other in joint if e < len(other))
            total = total + p * (p / (p_e / len(rows))).log()
    return total


def random_p(*widths: int, std: float = 1.) -> List[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(5 + t, width, generator=generator) * std).double()
            .softmax(-1) for t, width in enumerate(widths)]


# ------------------------------------------------------------------- exact


@pytest.mark.parametrize('widths', [(6, ), (6, 6, 6), (4, 4, 6), (2, 5)])
def test_exact_equals_definition(widths: tuple) -> None:
    p = random_p(*widths)
    expected = -slow_information([each.mean(0) for each in p])
    torch.testing.assert_close(mutual_information_loss(p, eps=0.), expected)


def test_exact_bounds() -> None:
    equal = random_p(6) * 3
    assert float(mutual_information_loss(equal, 0.)) == pytest.approx(0)
    apart = list(torch.eye(6).reshape(3, 2, 6).repeat(1, 4, 1))
    assert float(mutual_information_loss(apart, 0.)) == pytest.approx(
        -math.log(3))
    for std in (.1, 1., 10.):
        value = -mutual_information_loss(random_p(6, 6, 6, std=std), 0.)
        assert 0 <= value <= math.log(3)


def test_number_of_tokens_does_not_weigh_tasks() -> None:
    first, second = random_p(6, 6)
    torch.testing.assert_close(
        mutual_information_loss([first.repeat(9, 1), second]),
        mutual_information_loss([first, second]))


def test_conditional_rows_in_place_of_the_joint_are_another_weight() -> None:
    """As docs/mtht.md answers those who find rows of P(T) that are 1."""
    logits = [torch.randn(6).double().requires_grad_() for _ in TASKS]
    rows = [each.softmax(-1) for each in logits]
    wrong = sum((row * (row / sum(rows)).log()).sum() for row in rows)
    right = slow_information(rows)
    torch.testing.assert_close(wrong, 3 * (right - math.log(3)))
    for mine, other in zip(
            torch.autograd.grad(right, logits, retain_graph=True),
            torch.autograd.grad(wrong, logits)):
        torch.testing.assert_close(3 * mine, other)


# --------------------------------------------------------------- surrogate


@pytest.mark.parametrize('router', ['linear', 'mlp'])
@pytest.mark.parametrize('pruned', [False, True])
@pytest.mark.parametrize('grown', [False, True])
def test_surrogate_gradient_is_the_exact_one(grown: bool, pruned: bool,
                                             router: str) -> None:
    """With the running mean at the batch's own joint, in double precision."""
    tasks = [*TASKS, 'd'] if grown else TASKS
    model = trunk(router=router)
    if pruned:
        model.first.keep([0, 2, 3, 5])
    if grown:
        for layer in model.layers:
            layer.add_task('d', 2)
    model.double()
    xs = {task: torch.randn(7, DIMS).double() for task in tasks}
    routing = bound(model, tasks, weight=1., eps=0.).double()
    for task in tasks:
        run(model, routing, task, xs[task])
    routing.eval()

    def exact() -> Tensor:
        """From each router's logits, without the layers' own code."""
        rows = []
        for task in tasks:
            part = model.first.routers[task]
            logits = part.net(xs[task])
            if part.columns is not None:
                logits = logits[:, [0, 2, 3, 5]]
            rows.append(logits.softmax(-1).mean(0))
        return -slow_information(rows)

    total = 0.
    for task in tasks:
        params = list(model.first.routers[task].parameters())
        seen = _first_only(model, routing, task, xs[task])
        loss = routing.loss(seen, task)['loss_mi']
        total = total + loss
        own = torch.autograd.grad(loss, params, retain_graph=True)
        torch.testing.assert_close(own, torch.autograd.grad(exact(), params))
        with torch.no_grad():
            params[0][0, 0] += 1e-6
            above = exact()
            params[0][0, 0] -= 2e-6
            below = exact()
            params[0][0, 0] += 1e-6
        assert float((above - below) / 2e-6) == pytest.approx(
            float(own[0][0, 0]), abs=1e-8)
        assert max(float(grad.abs().max()) for grad in own) > 1e-3
    torch.testing.assert_close(total, exact())


def _first_only(model: Trunk, routing: MutualInformation, task: str,
                x: Tensor):
    select_task(model, task)
    with routing.record(model) as seen:
        model.first(x)
    return seen


def test_running_mean_and_loss_step_by_step() -> None:
    """Against plain Python, through warm-up and the running mean."""
    model = trunk()
    routing = bound(model, weight=.5, start=3, momentum=.8, eps=1e-3)
    tasks = ['a', 'a', 'b', 'a', 'a', 'b', 'a', 'c', 'b', 'b', 'b', 'a']
    rows = {task: torch.zeros(6) for task in TASKS}
    usage = {task: torch.zeros(6) for task in TASKS}
    counts = dict.fromkeys(TASKS, 0)
    for step, task in enumerate(tasks):
        x = tokens(step)
        losses = run(model, routing, task, x)
        p = model.first.routers[task](x).detach()
        counts[task] += 1
        n = counts[task]
        m = 1 - 1 / n if n <= 3 else min(.8, 1 - 1 / n)
        rows[task] = m * rows[task] + (1 - m) * p.mean(0)
        best = p.argsort(-1, descending=True)[:, :2]
        held = torch.stack([(best == e).any(-1).float().mean()
                            for e in range(6)])
        m = min(1 - 1 / n, .95)
        usage[task] = m * usage[task] + (1 - m) * held
        found = routing.rows('first')[task]
        torch.testing.assert_close(found.mean, rows[task])
        torch.testing.assert_close(found.usage, usage[task])
        assert found.count == n
        joint = torch.stack(list(rows.values())) / 3
        expected = -(p.mean(0) / 3 * (3 * (rows[task] / 3 + 1e-3) /
                                      (joint.sum(0) + 1e-3)).log()).sum()
        select_task(model, task)
        alone = routing.eval().loss(_first_only(model, routing, task, x), task)
        routing.train()
        torch.testing.assert_close(alone['loss_mi'],
                                   .5 * expected * (n > 3))
        assert bool(losses['loss_mi'] != 0) == (n > 3)


def test_layers_are_summed() -> None:
    model, x = trunk(), torch.randn(9, DIMS)
    routing = bound(model, weight=1.)
    for task in TASKS:
        run(model, routing, task, x)
    routing.eval()
    both = run(model, routing, 'a', x)['loss_mi']
    first = routing.loss(_first_only(model, routing, 'a', x), 'a')['loss_mi']
    select_task(model, 'a')
    with routing.record(model) as seen:
        model.blocks[0](model.between(x + model.first(x)).detach())
    seen.calls['first', 'a'].clear()
    last = routing.loss(seen, 'a')['loss_mi']
    torch.testing.assert_close(both, first + last)
    assert first != 0 and last != 0


# --------------------------------------------------- what the terms teach


@pytest.mark.parametrize('term', ['task', 'mi', 'exact', 'concentration'])
def test_each_term_teaches_routers(term: str) -> None:
    """And teaches none without its weight."""
    weights = dict(weight=0., concentration=0.)
    if term in ('mi', 'exact'):
        weights['weight'] = 1e-3
    elif term == 'concentration':
        weights['concentration'] = 1e-3
    model = trunk()
    routing = bound(model, exact=term == 'exact', **weights)
    xs = {task: torch.randn(9, DIMS) for task in TASKS}
    if term == 'exact':
        loss = _all_tasks(model, routing, xs)['loss_mi']
    else:
        for task in 'bc':
            run(model, routing, task, xs[task])
        losses = run(model, routing, 'a', xs['a'])
        if term == 'task':
            assert losses == {}
            select_task(model, 'a')
            loss = model(xs['a']).square().mean()
        else:
            loss, = losses.values()
            assert list(losses) == [
                'loss_mi' if term == 'mi' else 'loss_concentration'
            ]
    loss.backward()
    for layer in model.layers:
        for param in layer.routers['a'].parameters():
            assert param.grad.abs().max() > 1e-8
    # experts of the last layer learn from the task alone
    reached = model.blocks[0].experts.groups[0].w1.grad is not None
    assert reached == (term == 'task')


def _all_tasks(model: Trunk, routing: MutualInformation,
               xs: Dict[str, Tensor]) -> Dict[str, Tensor]:
    with routing.record(model) as seen:
        for task, x in xs.items():
            select_task(model, task)
            model(x)
    return routing.loss(seen, 'a')


def test_exact_loss_of_a_pass() -> None:
    model = trunk()
    routing = bound(model, weight=2., exact=True)
    xs = {task: torch.randn(9, DIMS) for task in TASKS}
    loss = _all_tasks(model, routing, xs)['loss_mi']
    with torch.no_grad():
        expected = 0.
        for layer in model.layers:
            p = []
            for task, x in xs.items():
                select_task(model, task)
                if layer is not model.first:
                    x = model.between(x + model.first(x))
                p.append(layer.routers[task](x))
            expected += 2 * mutual_information_loss(p)
    torch.testing.assert_close(loss.detach(), expected)
    assert all(routing.rows('first')[task].count == 1 for task in TASKS)
    with pytest.raises(ValueError, match=r"\['b', 'c'\] did not run in layer "
                       "'first'; set it to False"):
        run(model, routing, 'a', xs['a'])


@pytest.mark.parametrize('mode', first_of(['surrogate', 'none', 'exact'], 2))
def test_information_rises_with_the_loss_alone(mode: str) -> None:
    model = trunk(std=.02)
    routing = bound(
        model, weight=0. if mode == 'none' else 1., exact=mode == 'exact',
        start=5, momentum=.8)
    optimizer = torch.optim.Adam(model.parameters(), .02)
    generator = torch.Generator().manual_seed(0)
    for step in range(180):
        x = torch.randn(24, DIMS, generator=generator)
        if mode == 'exact':
            losses = _all_tasks(model, routing, dict.fromkeys(TASKS, x))
        else:
            losses = run(model, routing, TASKS[step % 3], x)
        if step == 15:
            start = float(routing.information('first'))
        target = sum(losses.values(), model(x).square().mean() * .01)
        optimizer.zero_grad()
        target.backward()
        optimizer.step()
    end = [float(routing.information(layer)) for layer in routing.layers]
    assert start < .25
    if mode == 'none':
        assert max(end) < .05
    else:
        assert .9 * math.log(3) < min(end) <= max(end) <= math.log(3) + 1e-6


def test_concentration_leaves_fewer_experts() -> None:
    model = trunk(['a'], std=.1)
    routing = bound(model, ['a'], weight=0., concentration=1.)
    optimizer = torch.optim.Adam(model.parameters(), .02)
    entropies = []
    for _ in range(100):
        losses = run(model, routing, 'a', torch.randn(24, DIMS))
        optimizer.zero_grad()
        losses['loss_concentration'].backward()
        optimizer.step()
        entropies.append(losses['loss_concentration'].item() / 2)
    assert entropies[0] == pytest.approx(math.log(6), abs=.1)
    assert entropies[-1] < .5 * entropies[0]


# ------------------------------------------------------------- robustness


def test_checkpointed_layers_teach_the_same() -> None:
    grads = []
    for reentrant in (None, False):
        model = trunk(reentrant=reentrant)
        routing = bound(model, weight=1.)
        for task in 'bca':
            x = tokens(1)
            loss = run(model, routing, task, x)['loss_mi']
        loss.backward()
        assert routing.rows('first')['a'].count == 1
        grads.append([p.grad for p in model.blocks[0].router.parameters()])
    torch.testing.assert_close(*grads)
    model = trunk(reentrant=True)
    with pytest.raises(ValueError, match="'blocks.0' ran without a graph"):
        run(model, bound(model), 'a', torch.randn(9, DIMS))


@pytest.mark.parametrize(('kwargs', 'sentence'), [
    (dict(weight=-1), '`weight` is -1; give'),
    (dict(weight='1'), "`weight` is '1'; give a number"),
    (dict(concentration=float('nan')), '`concentration` is nan'),
    (dict(eps=float('inf')), '`eps` is inf'),
    (dict(momentum=1), '`momentum` is 1; give .* to below 1'),
    (dict(momentum='1'), "`momentum` is '1'; give"),
    (dict(usage_momentum=-.1), '`usage_momentum` is -0.1'),
    (dict(start=-1), '`start` is -1; give'),
])
def test_numbers_that_cannot_be(kwargs: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MutualInformation(**kwargs)


def test_backbones_that_cannot_be_read() -> None:
    with pytest.raises(ValueError, match='MutualInformation reads the routers '
                       'of layers of experts, but Linear has none'):
        bound(nn.Linear(2, 2))
    for tasks, known in ((None, 'all'), (['a', 'b'], 'a')):
        with pytest.raises(ValueError, match="task 'c', but layer 'first' has "
                           rf"routers for \['{known}"):
            bound(Trunk(tasks), ['a', 'c'] if tasks else ['c'])
    model = trunk()
    routing = bound(model)
    with routing.record(model) as seen:
        pass
    with pytest.raises(ValueError, match="No router of task 'a' was seen"):
        routing.loss(seen, 'a')


def test_eval_changes_nothing() -> None:
    model = trunk()
    routing = bound(model)
    run(model, routing, 'a', torch.randn(9, DIMS))
    before = snapshot(routing)
    run(model, routing.eval(), 'a', torch.randn(9, DIMS))
    assert same(snapshot(routing), before)
