# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Every fusion starts at given weights, and can leave out all modules."""

import copy

import pytest
import torch
from torch import Tensor

from _tiny import (SIZE, add_modules, build_backbone, build_model, fusion_neck,
                   occupy, vit)
from vim_mm.models.fusion import build_fusion

NAMES = ['a', 'b', 'c']
FUSIONS = [
    dict(type='EnsMoE'),
    dict(type='EnsMoE', zero_module=True),
    dict(type='EnsMoE', top_k=2),
    dict(type='EnsMoE', top_k=2, zero_module=True),
    dict(type='EnsMoE', learn=False),
    dict(type='LinearMoE'),
    dict(type='RoutedMoE'),
    dict(type='RoutedMoE', zero_module=True, top_k=2),
    dict(type='ParameterMerge'),
    dict(type='ParameterMerge', zero_module=True),
]
IN_NECK = [cfg for cfg in FUSIONS if cfg['type'] != 'ParameterMerge']
WEIGHTS = [(0., 1., 0.), (.25, 0., 0.), (.5, 0., .1), (1., 0., 1.),
           (1 / 3, 1 / 3, 1 / 3)]


def pictures(num: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num, 3, SIZE, SIZE, generator=generator)


def equal(first: tuple, second: tuple) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


@pytest.mark.parametrize('weights', WEIGHTS)
@pytest.mark.parametrize('cfg', FUSIONS, ids=str)
def test_gates_are_the_weights(cfg: dict, weights: tuple) -> None:
    fusion = build_fusion(cfg, occupy(NAMES, 4, 6))
    if sum(map(bool, weights)) > fusion.most('default'):
        weights = (.5, .5, 0.)
    fusion.set_weights('default', torch.tensor(weights))
    row = fusion.rows('default')(1, torch.randn(2, 5, 6))
    expected = torch.tensor([weights, weights])
    for found in (fusion.gates('default'), row.expand(2, 3)):
        # a softmax has no zero
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    loaded = build_fusion(cfg, occupy(NAMES, 4, 6))
    loaded.load_state_dict(fusion.state_dict())
    assert torch.equal(loaded.gates('default'), fusion.gates('default'))
    assert torch.equal(
        copy.deepcopy(fusion).gates('default'), fusion.gates('default'))
    for param in fusion.parameters_of('default')[:1]:
        assert param.requires_grad == cfg.get('learn', True)


@pytest.mark.parametrize('cfg', FUSIONS, ids=str)
def test_no_weight_turns_a_task_off_and_another_one_on_again(
        cfg: dict) -> None:
    cfg = dict(cfg, tasks=['x', 'y'])
    fusion = build_fusion(cfg, occupy(NAMES, 4, 6))
    before = fusion.gates('y').clone()
    fusion.set_weights('x', torch.zeros(3))
    assert fusion.is_off('x') and not fusion.is_off('y')
    gates = fusion.gates('x')
    assert (gates == 0).all() and not gates.requires_grad
    assert torch.equal(fusion.gates('y'), before)
    loaded = build_fusion(cfg, occupy(NAMES, 4, 6))
    loaded.load_state_dict(fusion.state_dict())
    assert loaded.is_off('x')
    fusion.set_weights('x', torch.tensor([0., 1, 0]))
    assert not fusion.is_off('x') and fusion.gates('x')[0, 1] > .99


def test_a_checkpoint_of_before_has_a_strength_of_one() -> None:
    fusion = build_fusion(dict(type='EnsMoE'), occupy(NAMES, 4))
    state = {
        key: value
        for key, value in fusion.state_dict().items() if 'strength' not in key
    }
    fusion.set_weights('default', torch.tensor([.1, 0, 0]))
    fusion.load_state_dict(state)
    assert fusion.gates('default').sum().item() == pytest.approx(1)


@pytest.mark.parametrize('tuned', [False, True])
@pytest.mark.parametrize('cfg', FUSIONS, ids=str)
def test_in_the_trunk_it_is_the_bare_trunk_bit_for_bit(
        cfg: dict, tuned: bool) -> None:
    backbone = build_backbone()
    add_modules(backbone, *NAMES, trainable=tuned)
    backbone.set_fusion(cfg)
    x = pictures()
    with backbone.only():
        bare = backbone(x)
    assert not equal(backbone(x), bare)
    runs = []
    for name in NAMES:
        for adapter in backbone.bank.members[name].values():
            adapter.register_forward_hook(lambda *_: runs.append(1))
    backbone.fusion.set_weights('default', torch.zeros(3))
    for mode in (True, False):
        backbone.train(mode)
        assert equal(backbone(x), bare) and not runs
    # every process waits for the same parameters, which do not move
    learning = [p for p in backbone.parameters() if p.requires_grad]
    assert bool(learning) == (tuned or cfg.get('learn', True))
    if learning:
        sum(level.sum() for level in backbone.train()(x)).backward()
    assert all((param.grad == 0).all() for param in learning)


@pytest.mark.parametrize('adapter', ['ConvPass', 'SideLadder'])
@pytest.mark.parametrize('cfg', IN_NECK, ids=str)
def test_in_the_neck_it_is_the_bare_trunk_bit_for_bit(cfg: dict,
                                                      adapter: str) -> None:
    neck = dict(fusion_neck('seg', NAMES), fusion=cfg)
    model = build_model('seg', dict(trunk=vit()), neck)
    add_modules(model.backbone, *NAMES, type=adapter)
    x = pictures()
    with model.backbone.only():
        bare = model.backbone(x)
    model.neck.fusion.set_weights('default', torch.zeros(3))
    assert equal(model.neck.fuse(model.backbone(x)), bare)


@pytest.mark.parametrize('adapter', ['ConvPass', 'SideLadder'])
@pytest.mark.parametrize('cfg', IN_NECK, ids=str)
def test_in_the_neck_a_weight_is_a_share_of_what_a_module_adds(
        cfg: dict, adapter: str) -> None:
    neck = dict(fusion_neck('seg', NAMES), fusion=cfg)
    model = build_model('seg', dict(trunk=vit()), neck)
    add_modules(model.backbone, *NAMES, type=adapter)
    x = pictures()
    with model.backbone.only():
        bare = model.backbone(x)
    streams = model.backbone(x)
    model.neck.fusion.set_weights('default', torch.tensor([.25, 0, .5]))
    expected = [
        t + .25 * (a - t) + .5 * (c - t)
        for t, a, c in zip(bare, streams[0], streams[2])
    ]
    for level, other in zip(model.neck.fuse(streams), expected):
        torch.testing.assert_close(level, other, rtol=1e-2, atol=1e-2)
