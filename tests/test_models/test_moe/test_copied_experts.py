# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A new task that starts as another one, with copies of its experts."""

from copy import deepcopy
from typing import Callable, Dict, Optional, Sequence

import pytest
import torch
from _moe_tiny import TASKS, build_moe, images, moe_cfg, some_usage
from torch import Tensor, nn

from _moe import make_uniform
from _tiny import same, snapshot, vit
from vim_mm.models.moe import (MoELayer, MoEMlp, add_task, extract, moe_layers,
                               protect, set_k, to_moe)
from vim_mm.models.tasks import select_task
from vim_mm.registry import MODELS


@torch.no_grad()
def maps(trunk: nn.Module, task: str) -> Tensor:
    twin = deepcopy(trunk)
    twin.eval()
    select_task(twin, task)
    return twin(images(3, seed=5))[-1]


def train(trunk: nn.Module, task: str, steps: int = 4) -> None:
    """A new task learns, and nothing that the others use."""
    protect(trunk, [t for t in TASKS if t != task])
    select_task(trunk, task)
    optimizer = torch.optim.AdamW(trunk.parameters(), .02, weight_decay=.1)
    trunk.train()
    for step in range(steps):
        optimizer.zero_grad()
        (trunk(images(seed=step))[-1]**2).mean().backward()
        optimizer.step()


def chosen(layer: MoELayer, task: str) -> Tensor:
    """(N, k) experts of some tokens."""
    x = torch.randn(
        500, layer.dims, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return layer.choose(layer.routers[task](x), task)[1]


def prune(trunk: nn.Module) -> None:
    extract(trunk, TASKS, some_usage(trunk), 10)


def add_foreign(trunk: nn.Module) -> None:
    """Experts of another task, which are copies of none."""
    add_task(trunk, 'other', 2)


#: what may have been done to a trunk before
BEFORE: Dict[str, Callable] = dict(
    nothing=lambda trunk: None,
    pruned=prune,
    fewer_active=lambda trunk: set_k(trunk, 1),
    all_active=lambda trunk: set_k(trunk, 8),
    foreign=add_foreign,
    # routers whose logits tie everywhere
    uniform=make_uniform)


@pytest.mark.parametrize('num', [0, 1, 3, 11])
@pytest.mark.parametrize('before', BEFORE)
@pytest.mark.parametrize('kwargs', [
    dict(),
    dict(router='linear'),
    dict(attention=True),
    dict(dispatch='loop'),
    dict(dispatch='dense'),
    dict(gate_scale=2.),
])
def test_an_untrained_task_is_the_one_it_starts_as(kwargs: dict, before: str,
                                                   num: int) -> None:
    trunk = build_moe(**kwargs)
    BEFORE[before](trunk)
    expected = {task: maps(trunk, task) for task in TASKS}
    add_task(trunk, 'new', num, like='seg')
    found = maps(trunk, 'new')
    if kwargs.get('dispatch') == 'dense':
        # one product over all experts, whose sum is in another order
        torch.testing.assert_close(found, expected['seg'], rtol=0, atol=1e-5)
    else:
        assert torch.equal(found, expected['seg'])
    assert not torch.equal(found, expected['cls']) or before == 'uniform' \
        or before == 'all_active'
    for task in TASKS:
        assert torch.equal(maps(trunk, task), expected[task])
    for layer in moe_layers(trunk).values():
        experts = chosen(layer, 'new')
        foreign = range(8, 10) if before == 'foreign' else ()
        assert not set(foreign) & set(experts.flatten().tolist())
        # copies run from the first step, and none beside its original
        first = len(layer.experts) - num
        originals = layer.routers['seg'].originals(num)
        assert not num or before == 'uniform' or (experts >= first).any()
        for i, original in enumerate(originals[:3]):
            assert not ((experts == first + i).any(1)
                        & (experts == original).any(1)).any()


@pytest.mark.parametrize('precision', ['train', 'double', 'autocast'])
def test_in_other_modes(precision: str) -> None:
    trunk = build_moe()
    add_task(trunk, 'new', 2, like='seg')
    trunk.train(precision == 'train')
    x, found = images(3, seed=5), []
    if precision == 'double':
        trunk, x = trunk.double(), x.double()
    for task in ('seg', 'new'):
        select_task(trunk, task)
        with torch.autocast(
                'cpu', torch.bfloat16, enabled=precision == 'autocast'):
            found.append(trunk(x)[-1])
    assert torch.equal(*found)


def test_a_dense_start_stays_one() -> None:
    """Two copies of an MLP, of which fewer slices run than there are."""
    trunk = to_moe(
        MODELS.build(vit()), num_experts=8, k=2, slices=4, tasks=TASKS)
    add_task(trunk, 'new', 2, like='cls')
    assert torch.equal(maps(trunk, 'new'), maps(trunk, 'cls'))


def test_copies_and_originals_share_the_tokens_after_training() -> None:
    trunk = build_moe()
    originals = {}
    for name, layer in moe_layers(trunk).items():
        used = chosen(layer, 'seg').flatten().bincount(minlength=8)
        originals[name] = used.argsort(descending=True)[:3].tolist()
        layer.add_task('new', 3, 'seg', dict(seg=used))
    before = {task: maps(trunk, task) for task in TASKS}
    start = snapshot(trunk)
    train(trunk, 'new')
    assert all(torch.equal(maps(trunk, t), before[t]) for t in TASKS)
    assert not torch.equal(maps(trunk, 'new'), before['seg'])
    changed = [n for n, v in snapshot(trunk).items()
               if not torch.equal(v, start[n])]
    for word in ('.routers.new.net.', '.routers.new.added.0.weight',
                 '.experts.groups.1.w1', '.experts.groups.1.b2'):
        assert any(word in name for name in changed)
    for name, layer in moe_layers(trunk).items():
        experts = chosen(layer, 'new')
        shared = 0
        for copy, original in enumerate(originals[name], 8):
            new, old = ((experts == i).any(1) for i in (copy, original))
            assert not (new & old).any()
            shared += bool(new.any() and old.any())
        assert shared


@pytest.mark.parametrize('kept', [None, [1, 4, 6]])
@pytest.mark.parametrize('kind', ['linear', 'mlp'])
def test_probabilities(kind: str, kept: Optional[Sequence[int]]) -> None:
    layer = MoEMlp(16, 8, 8, 2, TASKS, router=kind)
    if kept is not None:
        layer.keep(kept)
    known = layer.routers['seg'].num_experts
    layer.add_task('new', 2, like='seg')
    old, new = layer.routers['seg'], layer.routers['new']
    torch.nn.init.normal_(new.added[0].weight)
    x = torch.randn(200, 16)
    p, logits = new(x), new._logits(x)
    torch.testing.assert_close(p.sum(1), torch.ones(200))
    stored = new.stored(p)
    assert stored.shape == (200, known + 2)
    # of a copy and its original one has it all, that of the larger logit
    columns = list(range(8)) if kept is None else kept
    for i in range(2):
        pair = stored[:, [known + i, i]]
        assert ((pair > 0).sum(1) == 1).all()
        larger = logits[:, 8 + i] >= logits[:, columns[i]]
        assert torch.equal(pair[:, 0] > 0, larger) and larger.any()
        assert not larger.all()
    assert old.width == 8 and new.width == 10


@pytest.mark.slow
def test_one_graph() -> None:
    torch._dynamo.reset()
    layer = MoEMlp(16, 8, 8, 2, TASKS)
    layer.add_task('new', 2, like='seg')
    layer.select_task('new')
    layer.learn_tasks(['new'])
    torch.nn.init.normal_(layer.router.added[0].weight)
    compiled = torch.compile(layer, backend='aot_eager', fullgraph=True)
    x = torch.randn(2, 30, 16)
    learning = [p for p in layer.parameters() if p.requires_grad]
    results = []
    for model in (layer, compiled):
        y = model(x)
        results.append([y, *torch.autograd.grad(y.sum(), learning)])
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected)
    assert results[0][-1].any()


def test_a_task_like_a_later_one() -> None:
    trunk = build_moe()
    add_task(trunk, 'new', 3, like='seg')
    train(trunk, 'new')
    before = {task: maps(trunk, task) for task in (*TASKS, 'new')}
    add_task(trunk, 'newer', 2, like='new')
    assert torch.equal(maps(trunk, 'newer'), before['new'])
    for layer in moe_layers(trunk).values():
        # the copies compete with copies, and those with the first ones
        assert layer.routers['newer'].slots[:3].tolist() == [[11, 8, 0],
                                                             [12, 9, 1],
                                                             [10, 2, 2]]
    protect(trunk, [*TASKS, 'new'])
    select_task(trunk, 'newer')
    trunk.train()
    (trunk(images())[-1]**2).mean().backward()
    assert all(
        layer.experts.groups[2].w1.grad.any()
        for layer in moe_layers(trunk).values())
    assert all(torch.equal(maps(trunk, t), before[t]) for t in before)


def test_extraction_leaves_what_the_task_ignores() -> None:
    trunk = build_moe()
    add_foreign(trunk)
    add_task(trunk, 'new', 1, like='seg')
    train(trunk, 'new', 1)
    before = maps(trunk, 'new')
    extract(trunk, ['new'])
    assert [len(layer.experts) for layer in moe_layers(trunk).values()
            ] == [9, 9]
    assert torch.equal(maps(trunk, 'new'), before)


@pytest.mark.parametrize('pruned', [False, True])
def test_copies_of_the_most_used(pruned: bool) -> None:
    trunk = build_moe()
    usage = some_usage(trunk)
    if pruned:
        usage = extract(trunk, TASKS, usage, 10)
    add_task(trunk, 'new', 2, 'seg', usage)
    for name, layer in moe_layers(trunk).items():
        most = usage[name]['seg'].argsort(descending=True)[:2].tolist()
        w1 = layer.experts.weights(len(layer.experts))[0]
        assert torch.equal(w1[-2:], w1[most])
    assert torch.equal(maps(trunk, 'new'), maps(trunk, 'seg'))
    # of other experts nothing is known
    add_task(trunk, 'newer', 1, 'new', usage)
    assert torch.equal(maps(trunk, 'newer'), maps(trunk, 'seg'))


def test_k_is_the_number_of_places_at_most() -> None:
    trunk = build_moe()
    add_task(trunk, 'new', 2, like='seg')
    set_k(trunk, 8)
    assert torch.equal(maps(trunk, 'new'), maps(trunk, 'seg'))
    extract(trunk, ['new'])
    with pytest.raises(ValueError, match='there are 8 experts to choose'):
        set_k(trunk, 9)


# ------------------------------------------------- weights that come later


@pytest.mark.parametrize('split', [False, True])
@pytest.mark.parametrize('pruned', [False, True])
def test_like_the_task_of_the_checkpoint(pruned: bool, split: bool) -> None:
    """A config adds tasks first, and weights are loaded then."""
    trained, fresh = build_moe(1), build_moe(2)
    for trunk in (trained, fresh):
        if pruned:
            extract(trunk, TASKS, some_usage(trunk), 10)
    add_task(fresh, 'new', 2, like='seg')
    add_task(fresh, 'newer', 1, like='new')
    add_task(fresh, 'afresh', 1)
    last = [
        snapshot(layer.experts.groups[-1])
        for layer in moe_layers(fresh).values()
    ]
    if split:
        for layer in moe_layers(fresh).values():
            layer.experts.split([1, len(layer.experts) - 3])
    missing, unexpected = fresh.load_state_dict(
        trained.state_dict(), strict=False)
    assert not unexpected and all(
        '.routers.afresh.' in name or '.experts.groups.' in name
        for name in missing)
    for task in ('seg', 'new', 'newer'):
        assert torch.equal(maps(fresh, task), maps(trained, 'seg'))
    for layer, group in zip(moe_layers(fresh).values(), last):
        assert same(snapshot(layer.experts.groups[-1]), group)
    # what is in a checkpoint is read as it is
    train(fresh, 'new')
    again = build_moe(3)
    if pruned:
        extract(again, TASKS, some_usage(again), 10)
    for task, num, like in (('new', 2, 'seg'), ('newer', 1, 'new'),
                            ('afresh', 1, None)):
        add_task(again, task, num, like)
    again.load_state_dict(fresh.state_dict())
    for task in (*TASKS, 'new', 'newer', 'afresh'):
        assert torch.equal(maps(again, task), maps(fresh, task))


def test_copies_of_other_experts_than_the_checkpoint() -> None:
    """Of which those are is in the checkpoint, not in the config."""
    trained, fresh = build_moe(1), build_moe(2)
    fifth = {name: dict(new=torch.eye(10)[5]) for name in moe_layers(trained)}
    for trunk, usage in ((trained, fifth), (fresh, None)):
        add_task(trunk, 'new', 2, like='seg')
        add_task(trunk, 'newer', 1, 'new', usage)
    depths = [
        layer.routers['newer'].slots.size(1) for trunk in (trained, fresh)
        for layer in moe_layers(trunk).values()
    ]
    assert depths == [2, 2, 3, 3]
    train(trained, 'newer', 1)
    fresh.load_state_dict(trained.state_dict())
    for task in (*TASKS, 'new', 'newer'):
        assert torch.equal(maps(fresh, task), maps(trained, task))


def test_dense_weights_that_come_later() -> None:
    weights = MODELS.build(vit()).state_dict()
    trunks = [MODELS.build(moe_cfg()) for _ in range(2)]
    add_task(trunks[1], 'new', 2, like='cls')
    add_task(trunks[1], 'afresh', 1)
    for trunk in trunks:
        trunk.load_state_dict(weights, strict=False)
    assert torch.equal(maps(trunks[1], 'new'), maps(trunks[1], 'cls'))
    first, second = (moe_layers(trunk).values() for trunk in trunks)
    for twin, layer in zip(first, second):
        assert same(*(snapshot(part.experts.groups[0])
                      for part in (twin, layer)))


@pytest.mark.parametrize('name', ['slots', 'added.0.of'])
@pytest.mark.parametrize('value', [-1, 10])
def test_lists_of_a_broken_file(name: str, value: int) -> None:
    trunk = build_moe()
    add_task(trunk, 'new', 2, like='seg')
    state = trunk.state_dict()
    key = next(key for key in state if key.endswith(f'routers.new.{name}'))
    state[key] = torch.full_like(state[key], value)
    with pytest.raises(ValueError, match=f'{name}. names columns that'):
        trunk.load_state_dict(state)
