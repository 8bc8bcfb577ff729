# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What is multiplied by 0, and so teaches nothing, is told before training."""

from math import nan
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from mmengine.registry import init_default_scope
from torch import nn

import _distill
import _multitask
from _loading import lines
from _tiny import (KINDS, add_modules, build_backbone, build_model,
                   build_runner, fusion_neck, model_cfg, vit)
from vim_mm.engine import no_effect, schedule_checks
from vim_mm.engine.loops import multitask_loops
from vim_mm.engine.no_effect import check_losses, check_scales
from vim_mm.models.adapters.base_adapter import BaseAdapter
from vim_mm.registry import MODELS
from vim_mm.utils.arguments import arguments_of

#: The losses of each kind of head.
LOSSES = dict(
    cls=('head.loss_module', ),
    det=('bbox_head.loss_cls', 'bbox_head.loss_bbox',
         'bbox_head.loss_centerness'),
    seg=('decode_head.loss_decode', ))
ADAPTERS = sorted({
    kind.__name__
    for kind in MODELS.module_dict.values()
    if isinstance(kind, type) and issubclass(kind, BaseAdapter)
})


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    return lines(monkeypatch, no_effect)


def model_of(kind: str) -> nn.Module:
    return build_model(kind, dict(trunk=vit(), new_module='n'))


@pytest.mark.parametrize('kind', KINDS)
def test_losses_of_no_weight(kind: str, told: list) -> None:
    model = model_of(kind)
    check_losses(model)
    losses = [model.get_submodule(name) for name in LOSSES[kind]]
    for loss in losses[:-1]:  # one of them is enough
        loss.loss_weight = 0.
    check_losses(model)
    losses[-1].loss_weight = 0
    with pytest.raises(ValueError, match='All losses of `model` are multip'):
        check_losses(model)
    # those that are off beside others get a line
    assert [line.count('bbox_head.') for line in told] == [2] * (kind == 'det')


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('weight', [-1., nan, float('inf')])
def test_losses_of_no_number(kind: str, weight: float) -> None:
    model = model_of(kind)
    model.get_submodule(LOSSES[kind][0]).loss_weight = weight
    with pytest.raises(ValueError, match=f'has the weight {weight}'):
        check_losses(model)


@pytest.mark.parametrize('weights', [[0., 0.], [0, 0], [nan, 1.], [-1., -1.]])
def test_classes_of_no_weight(weights: list) -> None:
    model = model_of('seg')
    loss = model.decode_head.loss_decode
    loss.class_weight = weights
    with pytest.raises(ValueError, match='are multiplied by 0|the weight'):
        check_losses(model)
    for good in ([0., 1.], None, [], 'file.npy'):
        loss.class_weight = good
        check_losses(model)


def test_a_head_beside_others(told: list) -> None:
    model = model_of('seg')
    model.auxiliary_head = nn.ModuleList([model_of('seg').decode_head])
    model.auxiliary_head[0].loss_decode.loss_weight = 0.
    check_losses(model)
    assert 'All losses of `model.auxiliary_head.0`' in told[0]
    model.auxiliary_head[0].loss_decode.loss_weight = 1.
    model.decode_head.loss_decode.loss_weight = 0.
    check_losses(model)
    assert 'All losses of `model.decode_head`' in told[1]


def test_heads_of_which_no_weight_is_known(told: list) -> None:
    model = model_of('cls')
    del model.head.loss_module.loss_weight
    check_losses(model)
    assert not told


# ------------------------------------------------------------- several tasks


@pytest.mark.parametrize(('weights', 'losses', 'words'), [
    (dict(cls=1, det=1, seg=1), dict(cls=1, det=0, seg=1),
     "'det' is drawn, and its losses are multiplied by 0, .* "
     '`train_cfg.weights.det=0`'),
    (None, dict(cls=0, det=0, seg=0), 'drawn, and its losses'),
    (dict(cls=1, det=0, seg=1), dict(cls=1, det=0, seg=1), None)])
def test_weights_of_tasks(weights: Any, losses: dict, words: Any,
                          tmp_path: Path, monkeypatch: Any) -> None:
    told = lines(monkeypatch, multitask_loops)
    loop = dict(type='MultiTaskTrainLoop', max_iters=1, weights=weights)
    run = _multitask.build(
        tmp_path, 1, model=_multitask.multitask_cfg(loss_weights=losses),
        train_cfg=loop, val_dataloader=None, val_evaluator=None, val_cfg=None)
    if words is None:
        run.train()
        assert "'det' is never drawn" in told[0]
        return
    with pytest.raises(ValueError, match=words):
        run.train()


def test_a_faint_task(told: list) -> None:
    init_default_scope('vim_mm')
    for weight in (.01, 0., 1e-9):
        check_losses(MODELS.build(_multitask.multitask_cfg(
            loss_weights=dict(cls=1, det=.6, seg=weight))))
    assert len(told) == 1
    assert told[0].startswith('`model.loss_weights.seg` is 1e-09, and that of')


@pytest.mark.parametrize(('late', 'exact'), [(99, False), (1, False),
                                             (99, True)])
def test_losses_of_routing_that_wait(late: int, exact: bool, tmp_path: Path,
                                     monkeypatch: Any) -> None:
    told = lines(monkeypatch, schedule_checks)
    run = _multitask.build(
        tmp_path, 4, val_dataloader=None, val_evaluator=None, val_cfg=None,
        model=_multitask.multitask_cfg(backbone=_multitask.moe(), routing=dict(
            type='vim_mm.MutualInformation', start=late, exact=exact)))
    schedule_checks.check_schedule(run)
    waits = [each for each in told if '`model.routing.start` is 99' in each]
    assert len(waits) == (late == 99 and not exact)


def test_losses_of_a_task(told: list) -> None:
    init_default_scope('vim_mm')
    model = MODELS.build(_multitask.multitask_cfg())
    check_losses(model)
    model.models['seg'].decode_head.loss_decode.loss_weight = 0.
    with pytest.raises(ValueError, match='losses of `model.tasks.seg` are'):
        check_losses(model)
    model.learn_tasks(['cls', 'det'])
    check_losses(model)


# ------------------------------------------------------------------ students


@pytest.mark.parametrize(('criteria', 'own', 'words', 'line'), [
    (0., 1., None, 'without help'), ((0., 0.), 1., None, 'without help'),
    ((0., 1.), 0., None, None), (1., (0., 0.), None, None),
    (0., 0., 'so nothing would learn', None)])
def test_help_of_no_weight(criteria: Any, own: Any, words: Any, line: Any,
                           tmp_path: Path, told: list) -> None:
    loss: Dict[tuple, dict] = {
        ('logits', 'logits'): dict(_distill.KL, weight=criteria)}
    model = _distill.build(tmp_path, 'cls', loss, own_weight=own)
    if words is None:
        check_losses(model)
        assert bool(told) == (line is not None)
        assert line is None or line in told[0]
        return
    with pytest.raises(ValueError, match=words):
        check_losses(model)


@pytest.mark.parametrize('kind', ['cls', 'seg'])
def test_a_students_head_that_nothing_teaches(
        kind: str, tmp_path: Path, told: list) -> None:
    features = {('backbone[0]', 'backbone[0]'): _distill.FEATURES}
    both = {**features, ('logits', 'logits'): _distill.KL}
    for criteria, own in ((both, 0.), (features, 1.)):
        check_losses(_distill.build(tmp_path, kind, criteria, own_weight=own))
    assert told == []
    check_losses(_distill.build(tmp_path, kind, features, own_weight=0.))
    assert len(told) == 1 and 'so its head learns nothing' in told[0]


def test_a_student_whose_losses_are_off(tmp_path: Path) -> None:
    model = _distill.build(tmp_path, 'cls')
    model.student.head.loss_module.loss_weight = 0.
    check_losses(model)  # it has a teacher
    for criterion in model.criteria:
        criterion.weight = 0.
    with pytest.raises(ValueError, match='so nothing would learn'):
        check_losses(model)


# ------------------------------------------------------------------- modules


@pytest.mark.parametrize('kind', ADAPTERS)
def test_modules_of_no_effect(kind: str, told: list) -> None:
    """Every kind that has an output scale."""
    taken = arguments_of(MODELS.get(kind))
    option = next((name for name in ('scale', 'alpha') if name in taken), None)
    if option is None:
        pytest.skip(f'{kind} has no output scale')
    backbone = build_backbone(new_module='n', adapter={
        'type': kind, option: 0})
    with pytest.raises(ValueError, match=f"module 'n' of `b`, a {kind}, .* no "
                       'gradient reaches it'):
        check_scales(dict(b=backbone))
    backbone.bank.requires_grad_(False)
    check_scales(dict(b=backbone))
    assert 'adds nothing; take it out' in told[0]
    backbone = build_backbone(new_module='n', adapter={
        'type': kind, option: -.5})
    check_scales(dict(b=backbone))
    assert len(told) == 1


@pytest.mark.parametrize('kind', ['FixedFusion', 'FixedMerge'])
@pytest.mark.parametrize(('weights', 'learns', 'refused'), [
    (dict(a=1., b=0.), True, True), (dict(a=0., b=1.), True, False),
    (dict(a=1., b=0.), False, False), (dict(a=1., b=-.5), True, False)])
def test_modules_of_no_weight(kind: str, weights: dict, learns: bool,
                              refused: bool) -> None:
    backbone = build_backbone()
    add_modules(backbone, 'a')
    add_modules(backbone, 'b', trainable=learns)
    backbone.set_fusion(dict(type=kind, weights=weights))
    if not refused:
        check_scales(dict(b=backbone))
        return
    with pytest.raises(ValueError, match="module 'b' .* fusion are 0, so no"):
        check_scales(dict(b=backbone))


# ----------------------------------------------------- whatever the reason is


class NoGradient(nn.Module):
    """A head whose losses lead nowhere."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.inner = head
        self.num_classes = head.num_classes

    def loss(self, *args: Any, **kwargs: Any) -> Dict[str, torch.Tensor]:
        found = self.inner.loss(*args, **kwargs)
        return {key: value * 0 for key, value in found.items()}


@pytest.mark.parametrize('counts', [1, 9])
@pytest.mark.parametrize('kind', ['cls', 'seg'])
def test_no_gradient_comes(kind: str, counts: int, tmp_path: Path) -> None:
    model = model_cfg(kind, dict(trunk=vit(), new_module='n'),
                      fusion_neck(kind))
    run = build_runner(kind, model, tmp_path, iters=3, optim_wrapper=dict(
        optimizer=dict(type='AdamW', lr=1e-3), accumulative_counts=counts))
    name = 'head' if kind == 'cls' else 'decode_head'
    setattr(run.model, name, NoGradient(getattr(run.model, name)))
    with pytest.raises(ValueError, match='No gradient has come .* 3 steps'):
        run.train()
    assert not list(tmp_path.glob('*.pth'))
