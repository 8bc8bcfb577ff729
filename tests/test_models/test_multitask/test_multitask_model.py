# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Models of three libraries over one backbone."""

from copy import deepcopy
from typing import Optional

import pytest
import torch
from mmengine.registry import DefaultScope
from torch import nn
from torch.utils._pytree import tree_leaves

from _loading import lines
from _multitask import (TASKS, TaskPictures, moe, multitask_cfg, resnet,
                        task_cfg)
from _tiny import SCOPES, same
from vim_mm.models.multitask import MultiTaskModel, building
from vim_mm.models.tasks import select_task
from vim_mm.registry import MODELS


def build(*tasks: str, **kwargs) -> MultiTaskModel:
    model = MODELS.build(multitask_cfg(*tasks, **kwargs))
    model.init_weights()
    return model


def alone(model: MultiTaskModel, task: str) -> nn.Module:
    """An ordinary model of the same tensors."""
    cfg = task_cfg(task)
    cfg.backbone = resnet()
    with DefaultScope.overwrite_default_scope(SCOPES[task]):
        ordinary = MODELS.build(cfg)
    ordinary.load_state_dict(model.of(task).state_dict())
    return ordinary


def batch(task: str) -> dict:
    return TaskPictures(task, noisy=False).batch()


def losses(model: nn.Module, data: dict) -> dict:
    data = model.data_preprocessor(data, True)
    return model(**data, mode='loss')


def test_the_backbone_is_there_once() -> None:
    model = build()
    keys = list(model.state_dict())
    assert not [key for key in keys if '.backbone.' in key]
    assert any(key.startswith('models.det.bbox_head.') for key in keys)
    params = [id(param) for param in model.parameters()]
    assert len(params) == len(set(params))
    again = deepcopy(model)
    for task in TASKS:
        assert model.of(task).backbone is model.backbone
        assert again.of(task).backbone is again.backbone
    assert again.backbone is not model.backbone
    assert again.data_preprocessor.model is again


@pytest.mark.parametrize('task', TASKS)
def test_a_task_computes_what_its_ordinary_model_does(task: str) -> None:
    model = build(loss_weights=dict(cls=1, det=0.5, seg=0.25))
    ordinary = alone(model, task)
    assert [*model.of(task).state_dict()] == [*ordinary.state_dict()]

    model.train(), ordinary.train()
    own = losses(model, dict(batch(task), task=task))
    plain = losses(ordinary, batch(task))
    assert list(own) == [f'{task}/{key}' for key in plain]
    weight = model.loss_weights[task]
    for key, value in plain.items():
        factor = weight if 'loss' in key else 1
        parts = tree_leaves(value)
        for found, part in zip(tree_leaves(own[f'{task}/{key}']), parts):
            assert torch.equal(found, part * factor)

    model.eval(), ordinary.eval()
    select_task(model, task)
    found, expected = (
        tree_leaves(
            [sample.to_dict() for sample in each.test_step(batch(task))])
        for each in (model, ordinary))
    assert len(found) == len(expected)
    for own, plain in zip(found, expected):
        if isinstance(plain, torch.Tensor):
            assert torch.equal(own, plain)


@pytest.mark.parametrize('tasks', [None, ['one']])
def test_every_way_to_a_task_runs_its_routers(tasks: Optional[list]) -> None:
    model = build(backbone=dict(moe(), tasks=tasks)).eval()
    x = torch.randn(1, 3, 64, 64)
    found = {task: tree_leaves(model(x, task=task)) for task in TASKS}
    ordinary = {task: model.of(task) for task in TASKS}
    ordinary['det'] = deepcopy(ordinary['det'])
    for task in ['seg', 'cls', 'det', 'cls']:
        for again in (ordinary[task](x), model(x, task=task)):
            for one, other in zip(found[task], tree_leaves(again)):
                assert torch.equal(one, other)
        model.select_task('seg')  # alone, without the backbone's parts
        for one, other in zip(found['seg'], tree_leaves(model(x))):
            assert torch.equal(one, other)


@pytest.mark.parametrize('task', TASKS)
def test_every_parameter_has_a_gradient_that_is_zero_when_idle(
        task: str) -> None:
    model = build()
    model.train()
    total, _ = model.parse_losses(losses(model, dict(batch(task), task=task)))
    total.backward()
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        assert param.grad is not None, name
        idle = name.startswith('models.') and name.split('.')[1] != task
        assert not idle or not param.grad.any(), name


class Norms(nn.Module):
    """Three maps, each of a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 14, 14)
        self.norms = nn.ModuleList(nn.BatchNorm2d(32) for _ in range(3))

    def forward(self, x: torch.Tensor) -> tuple:
        x = self.stem(x)
        return tuple(norm(x) for norm in self.norms)


def test_maps_that_a_task_does_not_read_reach_their_parameters() -> None:
    model = build('cls', 'seg', backbone=dict(type=Norms))
    for task in ('cls', 'seg'):
        model.zero_grad()
        total, _ = model.parse_losses(
            losses(model, dict(batch(task), task=task)))
        total.backward()
        first, _, last = model.backbone.norms
        assert not first.weight.grad.any() and last.weight.grad.any()


@pytest.mark.parametrize('steps', [['det'], ['cls', 'det'], ['seg', 'seg']])
def test_what_did_not_run_is_not_moved(steps: list) -> None:
    model = build()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.5)
    optimizer.register_step_pre_hook(lambda *_: model.drop_idle_grads())
    for group in (TASKS, steps, steps):  # momentum of all, then some
        before = deepcopy(model.state_dict())
        for task in group:
            total, _ = model.parse_losses(
                losses(model, dict(batch(task), task=task)))
            total.backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = [
            name for name, value in model.named_parameters()
            if not torch.equal(before[name], value)
        ]
        heads = {name.split('.')[1] for name in moved if name[0] == 'm'}
        assert heads == set(group)
        assert any(name.startswith('backbone.') for name in moved)


def test_only_tasks_that_learn_do() -> None:
    model = build(learn_tasks=['det'])
    assert not any(p.requires_grad for p in model.models.cls.parameters())
    assert all(p.requires_grad for p in model.models.det.parameters())
    model.train()
    with pytest.raises(ValueError, match="Task 'cls' runs in training"):
        losses(model, dict(batch('cls'), task='cls'))


class Told(Norms):

    def __init__(self, tasks: list) -> None:
        super().__init__()
        self.told = tasks


def test_a_backbone_that_takes_tasks_is_told_them() -> None:
    assert build(
        'det', 'cls',
        backbone=dict(type=Told)).backbone.told == ['det', 'cls']
    cfg = dict(type=Told, tasks=['own'])
    assert build('cls', backbone=cfg).backbone.told == ['own']


@pytest.mark.parametrize(('tasks', 'idle'), [
    (None, None), (['one'], None), (['cls', 'det'], None),
    (['cls', 'det', 'sgm', 'x'], "['sgm', 'x']")])
def test_routers_that_nothing_runs_are_named(
        tasks: Optional[list], idle: Optional[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, building)
    build('cls', 'det', backbone=dict(moe(), tasks=tasks))
    assert [idle in line for line in told] == [True] * (idle is not None)


def test_weights_are_initialised_once_by_each_library() -> None:
    model = build()
    # focal loss starts from rare objects
    bias = model.models.det.bbox_head.retina_cls.bias
    assert torch.allclose(bias, torch.full_like(bias, -4.595), atol=1e-2)


def test_a_state_dict_loads_into_an_equal_model() -> None:
    first, second = build(), build()
    second.load_state_dict(first.state_dict())
    assert same(first.state_dict(), second.state_dict())


MISTAKES = [
    (dict(tasks={}), '`model.tasks` is empty'),
    (dict(tasks=None), '`model.tasks` is empty'),
    (dict(backbone=None), '`model.backbone` is missing; give'),
    (dict(backbone='ResNet'), "`model.backbone` is 'ResNet'; give a config"),
    (dict(tasks='cls'), "`model.tasks` is 'cls'; give a dict by task"),
    (dict(tasks=['cls']), r"`model.tasks` is \['cls'\]; give a dict by task"),
    (dict(tasks=dict(cls=None)), '`model.tasks.cls` is None; give a config'),
    (dict(tasks=dict(cls='mmdet.FCOS')), "such as dict.type='mmdet.FCOS'"),
    (dict(tasks=dict(cls=dict(head=None))), '`model.tasks.cls` has no `type`'),
    (dict(tasks=dict(cls=dict(type='mmdet.Fcos'))), 'mmdet does not register'),
    (dict(tasks=dict(cls=dict(type='FCOS'))), 'begins with its library'),
    (dict(loss_weights=2.), '`model.loss_weights` is 2.0; give a dict by'),
    (dict(new_tasks=['seg']), "`model.new_tasks` is .*; give a dict by task"),
    (dict(new_tasks=dict(seg=None)), '`model.new_tasks.seg` is None'),
    (dict(new_tasks=dict(pose={})), "There is no task 'pose'"),
    (dict(new_tasks=dict(seg=dict(number=2))), 'takes no number; it takes'),
    (dict(routing='MI'), "`model.routing` is 'MI'; give a config"),
    (dict(routing=resnet()), '`model.routing` is a ResNet; give'),
    (dict(backbone=dict(moe(), tasks=['cls', 'det'])),
     "no task 'seg'; MoEMlp knows .*: name all .* in `model.new_tasks`"),
    (dict(backbone=dict(moe(), tasks='cls')), "the name 'cls'; give a list"),
    (dict(loss_weights=dict(cls=1, det=1)), "lacks the task 'seg'"),
    (dict(loss_weights=dict(cls=1, det=1, seg=1, pose=1)), "names 'pose'"),
    (dict(loss_weights=dict(cls=1, det=-1, seg=1)), 'loss_weights.det` is -1'),
    (dict(loss_weights=dict(cls=1, det='1', seg=1)), 'give a number'),
    (dict(data_preprocessor=dict(type='x')), 'give each task its own'),
    (dict(task='pose'), "There is no task 'pose'"),
    (dict(learn_tasks=['pose']), "There is no task 'pose'"),
    (dict(learn_tasks='cls'), 'give a list'),
    (dict(backbone=dict(type=Norms, learn_tasks=['cls'])),
     'set `model.learn_tasks`'),
    (dict(tasks={'a.b': task_cfg('cls')}), 'cannot name a task'),
    (dict(tasks={'gloss': task_cfg('cls')}), 'cannot name a task'),
    (dict(tasks=dict(a=dict(type='mmpretrain.LinearClsHead'))),
     'has no backbone'),
]


@pytest.mark.parametrize('missing, sentence', [
    (['tasks'], '`model.tasks` is empty'),
    (['backbone'], '`model.backbone` is missing'),
    (['backbone', 'tasks'], '`model.tasks` is empty'),
])
def test_what_is_missing_is_named(missing: list, sentence: str) -> None:
    cfg = multitask_cfg()
    for key in missing:
        cfg.pop(key)
    with pytest.raises(ValueError, match=sentence):
        MODELS.build(cfg)


@pytest.mark.parametrize(('change', 'sentence'), MISTAKES)
def test_mistakes_are_refused_in_a_sentence(change: dict,
                                            sentence: str) -> None:
    cfg = dict(multitask_cfg(), **change)
    with pytest.raises(ValueError, match=sentence) as error:
        MODELS.build(cfg)
    assert str(error.value).endswith('.')
