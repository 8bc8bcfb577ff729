# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Softmax gates per task and slot, and what all learned fusions share."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import init_default_scope
from torch import Tensor

from _tiny import occupy
from vim_mm.models.fusion import (EnsMoE, FixedFusion, LinearMoE,
                                  ParameterMerge, RoutedMoE, build_fusion)

NAMES = ['a', 'b', 'c', 'd']
LEARNED = [
    dict(type='EnsMoE'),
    dict(type='EnsMoE', zero_module=True),
    dict(type='ParameterMerge'),
    dict(type='LinearMoE'),
    dict(type='RoutedMoE', top_k=2, zero_module=True)
]


def reference(logits: Tensor, top_k: int) -> Tensor:
    """A softmax over the k largest entries of each row, one at a time."""
    gates = torch.zeros_like(logits)
    for row in range(len(logits)):
        best = sorted(range(logits.shape[1]),
                      key=lambda i: -float(logits[row, i]))[:top_k]
        total = sum(logits[row, i].exp() for i in best)
        for i in best:
            gates[row, i] = logits[row, i].exp() / total
    return gates


@settings(max_examples=25, deadline=None)
@given(
    num=st.integers(1, 4),
    slots=st.integers(1, 5),
    top_k=st.one_of(st.none(), st.integers(1, 6)))
def test_top_k_softmax(num: int, slots: int, top_k: int) -> None:
    torch.manual_seed(0)
    fusion = EnsMoE(occupy(NAMES[:num], *[4] * slots), top_k=top_k)
    logits = torch.randn(slots, num)
    fusion.set_logits('default', logits)
    gates = fusion.gates('default')
    torch.testing.assert_close(gates, reference(logits, top_k or num))
    assert ((gates > 0).sum(1) == min(num, top_k or num)).all()
    torch.testing.assert_close(gates.sum(1), torch.ones(slots))
    if num > 1:
        weight = torch.randn(slots, num)
        (gates * weight).sum().backward()
        excluded = gates.detach() == 0
        grad = fusion.logits['default'].grad
        assert (grad[excluded] == 0).all()


def test_fresh_gates_are_uniform_per_task_and_slot() -> None:
    fusion = EnsMoE(occupy(NAMES, 4, 4, 4), tasks=('x', 'y'))
    assert torch.equal(fusion.gates('y'), torch.full((3, 4), .25))
    # one logit per module, slot and task: N * S each, 24 N for ViT-B
    assert [p.numel() for p in fusion.parameters()] == [12, 12]
    vit_b = EnsMoE(occupy(NAMES, *[4] * 24))
    assert sum(p.numel() for p in vit_b.parameters()) == 24 * 4


def test_a_single_module_gets_weight_one_and_no_gradient() -> None:
    fusion = EnsMoE(occupy(['a'], 4, 4))
    for value in (-5., 0., 7.):
        fusion.set_logits('default', torch.tensor([value]))
        assert torch.equal(fusion.gates('default'), torch.ones(2, 1))
    fusion.gates('default').sum().backward()
    assert (fusion.logits['default'].grad == 0).all()


def test_a_module_at_minus_infinity_leaves_the_others_alone() -> None:
    old = EnsMoE(occupy(NAMES[:2], 4, 4))
    new = EnsMoE(occupy(NAMES[:3], 4, 4))
    logits = torch.randn(2, 2)
    old.set_logits('default', logits)
    padding = torch.full((2, 1), -torch.inf)
    new.set_logits('default', torch.cat([logits, padding], dim=1))
    gates = new.gates('default')
    assert torch.equal(gates[:, :2], old.gates('default'))
    assert (gates[:, 2] == 0).all()


def test_set_logits_takes_one_row_for_all_slots() -> None:
    fusion = EnsMoE(occupy(NAMES, 4, 4, 4))
    row = torch.tensor([1., 2, 3, 4])
    fusion.set_logits('default', row)
    assert torch.equal(fusion.logits['default'], row.expand(3, 4))
    with pytest.raises(RuntimeError):
        fusion.set_logits('default', torch.zeros(3))


@pytest.mark.parametrize('tasks', [['y'], ['x'], ['y', 'x', 'y'], []])
def test_what_runs_is_not_what_learns(tasks: list) -> None:
    fusion = EnsMoE(occupy(NAMES, 4, 4), tasks=('x', 'y'))
    assert fusion.selected == 'x' and fusion.learning == ['x']
    fusion.learn_tasks(tasks)
    assert fusion.learning == list(dict.fromkeys(tasks))
    for selected in 'yx':
        fusion.select(selected)
        assert fusion.selected == selected
        assert [t for t in 'xy' if fusion.logits[t].requires_grad
                ] == sorted(set(tasks))
    fusion.add_task('z', occupy(NAMES, 4))
    assert not fusion.logits['z'].requires_grad


def test_a_task_keeps_to_the_modules_it_knows() -> None:
    tasks = dict(old=['b', 'a'], all=NAMES)
    fusion = EnsMoE(occupy(NAMES, 4, 4), tasks=tasks)
    assert fusion.task_modules['old'] == ['b', 'a']
    assert fusion.gates('old').shape == (2, 2)
    fusion.to('meta').add_task('new', occupy([*NAMES, 'e'], 4, 4))
    assert fusion.tasks == ['old', 'all', 'new']
    assert fusion.logits['new'].shape == (2, 5)
    assert fusion.logits['new'].device == torch.device('meta')


@pytest.mark.parametrize('kind', [EnsMoE, FixedFusion])
def test_mistakes_are_sentences(kind: type) -> None:
    with pytest.raises(ValueError, match=r"Task 't' asks .*\['z'\]"):
        kind(occupy(NAMES, 4, 4), tasks=dict(t=['a', 'z']))
    with pytest.raises(ValueError, match='has no modules'):
        kind(occupy(NAMES, 4, 4), tasks=dict(t=[]))
    with pytest.raises(ValueError, match='has no modules'):
        kind(occupy([], 4, 4))
    fusion = kind(occupy(NAMES, 4, 4))
    with pytest.raises(ValueError, match="no task 'z'.*'default'"):
        fusion.select('z')
    with pytest.raises(ValueError, match="no task 'z'.*'default'"):
        fusion.learn_tasks(['default', 'z'])
    with pytest.raises(ValueError, match="is the name 'default'"):
        fusion.learn_tasks('default')
    with pytest.raises(ValueError, match="'default' already"):
        fusion.add_task('default', occupy(NAMES, 4))
    for name in ('a.b', '', 'keys', 'training'):
        with pytest.raises(ValueError, match='cannot name a task'):
            fusion.add_task(name, occupy(NAMES, 4))
    with pytest.raises(ValueError, match='has no modules'):
        fusion.add_task('empty', {})
    assert fusion.tasks == ['default']


def test_top_k_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match='`top_k` is'):
        EnsMoE(occupy(NAMES, 4, 4), top_k=0)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain', 'vim_mm'])
def test_a_bare_type_is_ours_in_every_scope(scope: str) -> None:
    init_default_scope(scope)
    for cfg in (dict(type='EnsMoE'), dict(type='vim_mm.EnsMoE')):
        assert isinstance(build_fusion(cfg, occupy(NAMES, 4, 4)), EnsMoE)


def test_a_checkpoint_finds_its_modules_in_another_order() -> None:
    first = EnsMoE(occupy(['a', 'b', 'c'], 4, 4))
    first.set_logits('default', torch.tensor([[1., 2., 3.], [4., 5., 6.]]))
    second = EnsMoE(occupy(['c', 'a', 'b'], 4, 4))
    second.load_state_dict(first.state_dict())
    expected = torch.tensor([[3., 1., 2.], [6., 4., 5.]])
    assert torch.equal(second.logits['default'], expected)
    assert second.task_modules['default'] == ['c', 'a', 'b']


def test_a_checkpoint_over_other_modules_is_refused() -> None:
    first = EnsMoE(occupy(['a', 'b'], 4, 4))
    second = EnsMoE(occupy(['a', 'x'], 4, 4))
    with pytest.raises(ValueError, match=r"\['a', 'b'\]"):
        second.load_state_dict(first.state_dict())
    assert (second.logits['default'] == 0).all()


# ------------------------------------------------------------- zero module


@pytest.mark.parametrize('top_k', [None, 1, 2])
def test_a_zero_module_takes_weight_from_the_others(top_k: int) -> None:
    fusion = EnsMoE(occupy(NAMES, 4, 4, 4), zero_module=True, top_k=top_k)
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    fusion.set_logits('default', logits)
    gates = fusion.gates('default')
    assert gates.shape == (3, 4)
    expected = reference(logits, top_k or 5)[:, :4]
    torch.testing.assert_close(gates, expected)
    fusion.set_logits('default', torch.tensor([0., 0, 0, 0, 99]))
    assert (fusion.gates('default') < 1e-6).all()


def test_a_zero_module_keeps_its_logit_when_the_others_are_set() -> None:
    fusion = EnsMoE(occupy(NAMES[:2], 4, 4), zero_module=True)
    assert torch.equal(fusion.gates('default'), torch.full((2, 2), 1 / 3))
    fusion.set_logits('default', torch.tensor([1., 2, 3]))
    fusion.set_logits('default', torch.tensor([[4., 5], [6, 7]]))
    assert torch.equal(fusion.logits['default'],
                       torch.tensor([[4., 5, 3], [6, 7, 3]]))


def test_a_single_module_can_be_switched_off() -> None:
    fusion = EnsMoE(occupy(['a'], 4), zero_module=True)
    fusion.gates('default').sum().backward()
    assert fusion.logits['default'].grad.abs().min() > 0


# ------------------------------------------------------ all learned fusions


def randomise(fusion: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in fusion.parameters():
        param.data.normal_(generator=generator)


@pytest.mark.parametrize('cfg', LEARNED)
def test_every_learned_fusion_loads_in_another_order(cfg: dict) -> None:
    x = torch.randn(2, 3, 5)
    first = build_fusion(cfg, occupy('abc', 6, 5))
    randomise(first)
    second = build_fusion(cfg, occupy('cab', 6, 5))
    second.load_state_dict(first.state_dict())
    order = [2, 0, 1]
    gates = first.gates('default'), second.gates('default')
    torch.testing.assert_close(gates[1], gates[0][:, order])
    rows = first.rows('default')(1, x), second.rows('default')(1, x)
    torch.testing.assert_close(rows[1], rows[0][..., order])


@pytest.mark.parametrize('cfg', LEARNED)
def test_every_learned_fusion_finds_its_slots(cfg: dict) -> None:
    """Modules and slots both stand elsewhere; three in a cycle."""
    widths = dict(s0=6, s1=5, s2=3)
    a, b, c = dict(s0=6, s1=5), dict(s1=5, s2=3), dict(s0=6)
    first = build_fusion(cfg, dict(a=a, b=b, c=c))
    randomise(first)
    second = build_fusion(cfg, dict(b=b, c=c, a=a))
    assert list(first.task_slots['default']) == ['s0', 's1', 's2']
    assert list(second.task_slots['default']) == ['s1', 's2', 's0']
    second.load_state_dict(first.state_dict())
    for slot, width in widths.items():
        x = torch.randn(2, 3, width)
        rows = [
            f.rows('default')(list(f.task_slots['default']).index(slot), x)
            for f in (first, second)
        ]
        torch.testing.assert_close(rows[1], rows[0][..., [1, 2, 0]])
    named = second.named_gates('default')
    assert {slot: sorted(row) for slot, row in named.items()} == dict(
        s1=['a', 'b'], s2=['b'], s0=['a', 'c'])


@pytest.mark.parametrize('what', ['modules', 'slots'])
def test_a_checkpoint_that_does_not_name_them_is_refused(what: str) -> None:
    fusion = EnsMoE(occupy(NAMES, 4, 4))
    state = fusion.state_dict()
    del state[f'{what}_of_default']
    with pytest.raises(ValueError, match=f'does not say which {what}'):
        fusion.load_state_dict(state, strict=False)


@pytest.mark.parametrize('cfg', LEARNED)
def test_only_the_learning_task_of_every_learned_fusion_learns(
        cfg: dict) -> None:
    fusion = build_fusion(dict(cfg, tasks=('x', 'y')), occupy(NAMES, 3, 3))
    for task in 'yx':
        fusion.learn_tasks([task])
        assert fusion.selected == 'x'
        learning = [n for n, p in fusion.named_parameters() if p.requires_grad]
        assert learning and all(n.endswith(f'.{task}') for n in learning)
        assert {id(p) for p in fusion.parameters() if p.requires_grad
                } == set(map(id, fusion.parameters_of(task)))
    frozen = build_fusion(dict(cfg, learn=False), occupy(NAMES, 3, 3))
    frozen.learn_tasks(['default'])
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize('cfg', LEARNED)
def test_every_learned_fusion_starts_uniform_and_copies(cfg: dict) -> None:
    fusion = build_fusion(cfg, occupy(NAMES, 3, 3))
    num = 5 if cfg.get('zero_module') else 4
    if 'top_k' not in cfg:
        expected = torch.full((2, 4), 1 / num)
        assert torch.equal(fusion.gates('default'), expected)
    fusion.add_task('new', occupy(NAMES[:2], 3, 3))
    assert fusion.gates('new').shape == (2, 2)
    assert {n.split('.')[1] for n, _ in fusion.named_parameters()} == {
        'default', 'new'}


def test_kinds() -> None:
    kinds = EnsMoE, ParameterMerge, LinearMoE, RoutedMoE, FixedFusion
    assert [k.merges for k in kinds] == [False, True, False, False, False]
    assert [k.per_picture for k in kinds] == [False] * 3 + [True, False]
