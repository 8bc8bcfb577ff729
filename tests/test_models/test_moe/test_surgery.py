# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What can be done to a trained trunk with experts, and what stays then."""

from copy import deepcopy
from typing import Dict, List, Optional

import pytest
import torch
from _moe_tiny import TASKS, TokenNorm, build_moe, images, some_usage
from mmengine.model import ExponentialMovingAverage, StochasticWeightAverage
from mmengine.registry import OPTIMIZERS
from torch import Tensor, nn

from _tiny import same, snapshot
from vim_mm.models.moe import (add_task, extract, freeze, moe_layers, protect,
                               set_k)
from vim_mm.models.tasks import learn_tasks, select_task

OPTIMIZERS_OF = dict(
    momentum=dict(type='SGD', lr=.1, momentum=.9, weight_decay=.1),
    adamw=dict(type='AdamW', lr=.01, weight_decay=.1),
    lamb=dict(type='mmpretrain.Lamb', lr=.01, weight_decay=.1))


@torch.no_grad()
def outputs(trunk: nn.Module, task: str) -> Tensor:
    """The map of a task, in a pass that leaves the trunk as it was."""
    twin = deepcopy(trunk)
    twin.eval()
    select_task(twin, task)
    return twin(images(seed=5))[-1]


def train(trunk: nn.Module, optimizer: str = 'adamw', steps: int = 3) -> None:
    cfg = OPTIMIZERS_OF[optimizer]
    built = OPTIMIZERS.build(dict(cfg, params=trunk.parameters()))
    trunk.train()
    for step in range(steps):
        built.zero_grad()
        (trunk(images(seed=step))[-1]**2).mean().backward()
        built.step()


def learning(trunk: nn.Module) -> List[str]:
    return [n for n, p in trunk.named_parameters() if p.requires_grad]


def moved(trunk: nn.Module, **kwargs) -> List[str]:
    """The parameters and buffers that training changes."""
    before = snapshot(trunk)
    train(trunk, **kwargs)
    after = snapshot(trunk)
    return [n for n in before if not torch.equal(before[n], after[n])]


# -------------------------------------------------------------- k, pruning


def test_fewer_active_experts() -> None:
    trunk = build_moe()
    before = outputs(trunk, 'cls')
    set_k(trunk, 1)
    assert not torch.equal(outputs(trunk, 'cls'), before)
    set_k(trunk, 2)
    assert torch.equal(outputs(trunk, 'cls'), before)
    with pytest.raises(ValueError, match='`k` is 9, but there are 8 experts'):
        set_k(trunk, 9)


def test_k_fits_all_layers_or_none() -> None:
    trunk = build_moe()
    first, last = moe_layers(trunk).values()
    last.keep([0, 1, 2])
    with pytest.raises(ValueError, match='there are 3'):
        set_k(trunk, 4)
    assert first.k == last.k == 2


@pytest.mark.parametrize('k, expected', [
    ({
        r'layers\.1\..*': 1
    }, [1, 2]),
    ({
        r'layers\.1\..*': 1,
        '.*': 3
    }, [1, 3]),
    ({
        '.*': 4
    }, [4, 4]),
])
def test_k_of_each_layer(k: dict, expected: List[int]) -> None:
    trunk = build_moe()
    set_k(trunk, k)
    layers = list(moe_layers(trunk).values())
    assert [layer.k for layer in layers] == expected
    with torch.no_grad():
        trunk(images())
    # pruning keeps the k most used of each
    usage = {name: dict(seg=torch.arange(8)) for name in moe_layers(trunk)}
    extract(trunk, ['seg'], usage, threshold=1000)
    assert [len(layer.experts) for layer in layers] == expected


@pytest.mark.parametrize('k, words', [
    ({
        r'stages\..*': 1
    }, "'stages.* in `k` matches no layer of experts.*layers.1.ffn"),
    ({
        '.*': 1,
        r'layers\.1\..*': 2
    }, 'that no pattern before it does'),
    ({
        '(': 1
    }, 'is no regular expression'),
    ({
        2: 1
    }, 'is no regular expression'),
    ({
        r'layers\.1\..*': 9
    }, '`k` is 9, but there are 8'),
    ({
        r'layers\.1\..*': 1,
        '.*': 0
    }, '`k` is 0'),
])
def test_k_of_no_layer(k: dict, words: str) -> None:
    trunk = build_moe()
    with pytest.raises(ValueError, match=words) as error:
        set_k(trunk, k)
    assert '\n' not in str(error.value)
    assert [layer.k for layer in moe_layers(trunk).values()] == [2, 2]


def really_used(trunk: nn.Module, task: str) -> Dict[str, dict]:
    """How often each expert runs for the images of the tests."""
    found, handles = {}, []
    for name, layer in moe_layers(trunk).items():

        def count(router, _, p, name=name, layer=layer):
            index = layer.choose(p)[1].flatten()
            found[name] = {
                task: torch.bincount(index, minlength=router.num_experts)
            }

        handles.append(layer.routers[task].register_forward_hook(count))
    select_task(trunk, task)
    with torch.no_grad():
        trunk(images(seed=5))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize('k', [1, 2])
@pytest.mark.parametrize('router', ['linear', 'mlp'])
@pytest.mark.parametrize('attention', [False, True])
def test_extracted_equals_full(k: int, router: str, attention: bool) -> None:
    trunk = build_moe(router=router, attention=attention)
    set_k(trunk, k)
    full = outputs(trunk, 'seg')
    extract(trunk, ['seg'], really_used(trunk, 'seg'), threshold=0)
    sizes = [len(layer.experts) for layer in moe_layers(trunk).values()]
    assert min(sizes) < 8  # something was dropped, or this shows nothing
    assert torch.equal(outputs(trunk, 'seg'), full)
    with pytest.raises(ValueError, match="no task 'cls'"):
        select_task(trunk, 'cls')


def test_threshold_is_in_percent_of_one_of_k() -> None:
    counts = torch.tensor([50., 40., 1.4, 1.6, 7., 0., 0., 0.])
    for k, kept in ((1, [0, 1, 4]), (2, [0, 1, 3, 4])):
        trunk = build_moe()
        set_k(trunk, k)
        usage = {name: dict(cls=counts) for name in moe_layers(trunk)}
        left = extract(trunk, ['cls'], usage, threshold=3)
        for name, layer in moe_layers(trunk).items():
            assert layer.routers['cls'].columns.tolist() == kept
            assert torch.equal(left[name]['cls'], counts[kept])


def test_the_k_most_used_always_stay() -> None:
    trunk = build_moe()
    usage = {name: dict(seg=torch.arange(8)) for name in moe_layers(trunk)}
    extract(trunk, ['seg'], usage, threshold=1000)
    for layer in moe_layers(trunk).values():
        assert layer.routers['seg'].columns.tolist() == [6, 7]


def test_experts_of_either_task_stay() -> None:
    trunk = build_moe()
    usage = {
        name:
        dict(
            cls=torch.eye(8)[0] + torch.eye(8)[3],
            seg=torch.eye(8)[3] + torch.eye(8)[5])
        for name in moe_layers(trunk)
    }
    extract(trunk, TASKS, usage, threshold=3)
    for layer in moe_layers(trunk).values():
        assert [r.columns.tolist()
                for r in layer.routers.values()] == [[0, 3, 5]] * 2


def test_without_threshold_only_what_nobody_knows_goes() -> None:
    trunk = build_moe()
    before = outputs(trunk, 'cls')
    add_task(trunk, 'new', 3)
    extract(trunk, ['cls'])
    assert torch.equal(outputs(trunk, 'cls'), before)
    for layer in moe_layers(trunk).values():
        assert layer.tasks == ['cls'] and len(layer.experts) == 8
        assert layer.routers['cls'].columns is None


# ----------------------------------------------------------------- freezing


@pytest.mark.parametrize('norm', [False, True])
def test_routers_alone(norm: bool) -> None:
    trunk = build_moe(norm=norm)
    learn_tasks(trunk, ['cls'])
    freeze(trunk, 'routers')
    found = learning(trunk)
    assert found and all('routers.cls.' in name for name in found)
    assert sorted(moved(trunk)) == sorted(found)
    # nobody has to know that it is so
    assert not any(m.training
                   for m in trunk.modules() if isinstance(m, TokenNorm))


@pytest.mark.parametrize('train_, words', [
    ('all', ['routers.cls', 'routers.seg', 'experts', 'layers.0.attn']),
    ('shared', ['norm', 'layers.0.attn']),
    ('experts', ['experts']),
    (['routers', 'shared'], ['routers.cls', 'routers.seg', 'layers.0.attn']),
])
def test_parts(train_: str, words: List[str]) -> None:
    trunk = build_moe(norm=True)
    freeze(trunk, train_)
    found = learning(trunk)
    for word in ('routers.cls', 'routers.seg', 'experts', 'layers.0.attn'):
        assert any(word in name for name in found) == (word in words)
    # as a multi-task model asks
    learn_tasks(trunk, TASKS)
    assert learning(trunk) == found
    # the reverse, as after a warm-up of the routers
    freeze(trunk, 'routers')
    freeze(trunk, train_)
    assert learning(trunk) == found
    statistics = [n for n in moved(trunk) if 'running' in n]
    assert bool(statistics) == ('layers.0.attn' in words)


@pytest.mark.parametrize('select', ['most', 'least', 'new'])
def test_some_experts_learn(select: str) -> None:
    trunk = build_moe()
    usage = some_usage(trunk)
    learn_tasks(trunk, ['seg'])
    select_task(trunk, 'seg')
    before = outputs(trunk, 'seg')
    freeze(trunk, ['routers', 'experts'], dict(num=2, select=select), usage)
    assert torch.equal(outputs(trunk, 'seg'), before)
    for name, layer in moe_layers(trunk).items():
        order = usage[name]['seg'].argsort()
        wanted = dict(
            most=order[-2:], least=order[:2], new=torch.tensor([6, 7]))[select]
        flags = [
            group.w1.requires_grad for group in layer.experts.groups
            for _ in range(len(group))
        ]
        assert [i for i, flag in enumerate(flags)
                if flag] == sorted(wanted.tolist())
    before = {n: g for n, g in snapshot(trunk).items()}
    changed = moved(trunk, optimizer='lamb')
    assert set(changed) <= set(learning(trunk))
    assert any('experts' in name for name in changed)
    assert same({
        n: v
        for n, v in before.items() if n not in changed
    }, {
        n: v
        for n, v in snapshot(trunk).items() if n not in changed
    })


def test_frozen_after_copies_and_modes() -> None:
    trunk = build_moe(norm=True)
    freeze(trunk, 'routers')
    twin = deepcopy(trunk)
    trunk.eval()
    twin.train()
    assert learning(twin) == learning(trunk)
    assert not [n for n in moved(twin) if 'running' in n or 'num_b' in n]


def test_composition() -> None:
    trunk = build_moe()
    usage = some_usage(trunk)
    set_k(trunk, 1)
    usage = extract(trunk, ['seg'], usage, threshold=10)
    add_task(trunk, 'new', 2, like='seg')
    select_task(trunk, 'new')
    learn_tasks(trunk, ['new'])
    freeze(trunk, ['routers', 'experts'], dict(num=2))
    old = outputs(trunk, 'seg')
    changed = moved(trunk)
    assert changed and all('.routers.new.' in n or '.experts.groups.1.' in n
                           for n in changed)
    assert torch.equal(outputs(trunk, 'seg'), old)


# ---------------------------------------------------------------- new tasks


@pytest.mark.parametrize('like', [None, 'seg'])
@pytest.mark.parametrize('num', [0, 2])
@pytest.mark.parametrize('optimizer', list(OPTIMIZERS_OF))
@pytest.mark.parametrize('attention', [False, True])
def test_nothing_is_forgotten(attention: bool, optimizer: str, num: int,
                              like: Optional[str]) -> None:
    trunk = build_moe(norm=True, attention=attention)
    before = {task: outputs(trunk, task) for task in TASKS}
    add_task(trunk, 'new', num, like)
    protect(trunk, TASKS)
    select_task(trunk, 'new')
    averages = [
        kind(trunk, update_buffers=True)
        for kind in (ExponentialMovingAverage, StochasticWeightAverage)
    ]
    changed = moved(trunk, optimizer=optimizer)
    for average in averages:
        average.update_parameters(trunk)
        average.update_parameters(trunk)
    assert changed
    for task in TASKS:
        for model in (trunk, *(a.module for a in averages)):
            assert torch.equal(outputs(model, task), before[task])
    # a second task, beside the first one's experts
    before['new'] = outputs(trunk, 'new')
    add_task(trunk, 'newer', 1)
    protect(trunk, [*TASKS, 'new'])
    select_task(trunk, 'newer')
    assert moved(trunk, optimizer=optimizer)
    for task, expected in before.items():
        assert torch.equal(outputs(trunk, task), expected)


def test_unprotected_tasks_forget() -> None:
    trunk = build_moe(norm=True)
    before = outputs(trunk, 'cls')
    add_task(trunk, 'new', 2)
    select_task(trunk, 'new')
    train(trunk)
    assert not torch.equal(outputs(trunk, 'cls'), before)


# ---------------------------------------------------------------- bad input


def choose(train_=('experts', ), usage=None, **experts):
    freeze(build_moe(), list(train_), experts, usage)


@pytest.mark.parametrize('mistake, words', [
    (lambda: set_k(nn.Linear(1, 1), 1), 'Linear has no layer of experts'),
    (lambda: set_k(build_moe(), 0), '`k` is 0'),
    (lambda: extract(build_moe(), ['det']), "There is no task 'det'; "),
    (lambda: extract(build_moe(), 'cls'), "is the name 'cls'; give a list"),
    (lambda: extract(build_moe(), []), "name one of .*'cls', 'seg'"),
    (lambda: protect(build_moe(), 'cls'), "is the name 'cls'; give a list"),
    (lambda: protect(build_moe(), ['det']), "There is no task 'det'; "),
    (lambda: extract(build_moe(), ['cls'], threshold=3), 'is not known'),
    (lambda: extract(build_moe(), ['cls'], {
        name: dict(cls=torch.zeros(8))
        for name in moe_layers(build_moe())
    }, 3), 'is not known'),
    (lambda: extract(build_moe(), ['cls'], {
        name: dict(cls=torch.ones(5))
        for name in moe_layers(build_moe())
    }, 3), 'that of 5 experts, but it has 8'),
    (lambda: add_task(build_moe(), 'cls'), "a task 'cls' already"),
    (lambda: add_task(build_moe(), 'a.b'), 'cannot name a task'),
    (lambda: add_task(build_moe(), 'x', -1), 'give 0 or more'),
    (lambda: add_task(build_moe(), 'x', 1.5), '1.5 new .* give 0 or more'),
    (lambda: add_task(build_moe(), 'x', like='y'), "no task 'y'"),
    (lambda: freeze(build_moe(), 'heads'), "`train` names 'heads'"),
    (lambda: choose(num=0), '`experts.num` is 0'),
    (lambda: choose(num=9), 'give 1 to 8'),
    (lambda: choose(num=2, select='best'), 'new, most, least'),
    (lambda: choose(number=2), 'dict\\(num=N'),
    (lambda: choose(num=2, select='most'), 'is not known; measure it'),
    (lambda: choose(['routers'], num=2), "add 'experts' to it"),
    (lambda: list(moe_layers(build_moe()).values())[0].keep([0]),
     'runs 2 experts per token, but only 1'),
])
def test_mistakes(mistake, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        mistake()
    assert '\n' not in str(error.value)
