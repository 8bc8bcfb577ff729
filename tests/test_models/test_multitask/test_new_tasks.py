# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Tasks that come later, and what the others remember."""

from pathlib import Path
from typing import Dict, List

import pytest
import torch
from _moe_tiny import TASKS, moe_cfg, task_cfg, write_moe
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from torch import Tensor
from torch.utils._pytree import tree_leaves

from _multitask import TaskPictures, build, loader, resnet
from _tiny import fill, snapshot
from vim_mm.models.moe import moe_layers
from vim_mm.models.multitask import MultiTaskModel
from vim_mm.models.tasks import learn_tasks, select_task
from vim_mm.registry import MODELS

OPTIMIZERS = dict(
    lamb=dict(type='mmpretrain.Lamb', lr=2e-2, weight_decay=.1),
    momentum=dict(type='SGD', lr=1e-2, momentum=.9, weight_decay=.1),
    adamw=dict(type='AdamW', lr=1e-2, weight_decay=.1))


def model_cfg(*tasks: str, **kwargs) -> dict:
    cfg = dict(
        type='vim_mm.MultiTaskModel',
        backbone=moe_cfg(tasks=None),
        tasks={task: task_cfg(task)
               for task in tasks},
        routing=dict(type='vim_mm.MutualInformation', start=0))
    return dict(cfg, **kwargs)


def old_model() -> MultiTaskModel:
    """A model of two tasks whose every number matters."""
    model = MODELS.build(model_cfg(*TASKS))
    fill(model, .2)
    for name, value in model.named_buffers():
        if 'running' in name or 'routing' in name:
            value.uniform_(.5, 1)
    return model


@torch.no_grad()
def predictions(model: MultiTaskModel, task: str) -> List[Tensor]:
    """Maps and results of a task, in a pass that leaves no trace."""
    mode, last = model.training, model.task
    model.eval()
    select_task(model, task)
    data = TaskPictures(task[:3], noisy=False).batch()
    results = [sample.to_dict() for sample in model.test_step(data)]
    inputs = model.data_preprocessor(dict(data, task=task))['inputs']
    found = tree_leaves([results, model.backbone(inputs)])
    model.train(mode)
    select_task(model, last)
    return [leaf for leaf in found if isinstance(leaf, Tensor)]


def equal(first: List[Tensor], second: List[Tensor]) -> bool:
    return len(first) == len(second) > 1 and all(
        map(torch.equal, first, second))


def run_of_new_task(folder: Path, checkpoint: Path, optimizer: str,
                    **kwargs) -> Runner:
    """A run that learns a new segmentation after two other tasks."""
    model = model_cfg(
        *TASKS,
        learn_tasks=['parts'],
        new_tasks=dict(parts=dict(num_experts=2)))
    model['tasks']['parts'] = task_cfg('seg')
    cfg = dict(
        model=model,
        load_from=str(checkpoint),
        train_dataloader=dict(cls=None, seg=None, parts=loader('seg')),
        train_cfg=dict(
            type='MultiTaskTrainLoop', max_iters=3, val_interval=99),
        val_dataloader=None,
        val_evaluator=None,
        val_cfg=None,
        optim_wrapper=dict(
            optimizer=OPTIMIZERS[optimizer], clip_grad=dict(max_norm=.1)),
        custom_hooks=[dict(type='EMAHook', update_buffers=True)])
    return build(folder, **dict(cfg, **kwargs))


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_by_config_nothing_is_forgotten(optimizer: str,
                                        tmp_path: Path) -> None:
    old = old_model()
    before = {task: predictions(old, task) for task in TASKS}
    torch.save(dict(state_dict=old.state_dict()), tmp_path / 'old.pth')
    runner = run_of_new_task(tmp_path / 'run', tmp_path / 'old.pth', optimizer)
    fresh = snapshot(runner.model)
    runner.train()
    average = next(h for h in runner.hooks if isinstance(h, EMAHook))
    learned: Dict[str, MultiTaskModel] = dict(
        run=runner.model, average=average.ema_model.module)
    # the checkpoint, read by the same config
    again = MODELS.build(runner.cfg.model)
    state = torch.load(
        tmp_path / 'run' / 'iter_3.pth', weights_only=False)['state_dict']
    again.load_state_dict(state)
    for model in (*learned.values(), again):
        for task in TASKS:
            assert equal(predictions(model, task), before[task])
    now = snapshot(runner.model)
    changed = {n for n in fresh if not torch.equal(fresh[n], now[n])}
    words = ('models.parts.', '.routers.parts.', '.groups.1.')
    for word in words:
        assert any(word in name for name in changed)
    # all else is what it was in the old model, rows of routing too
    then = snapshot(old)
    for model in (*learned.values(), again):
        now = snapshot(model)
        assert all(torch.equal(now[name], then[name]) for name in then)
    assert any('routing' in name for name in then)
    assert any('routing' in name for name in changed - then.keys())


def test_by_config_a_task_starts_as_one_of_the_checkpoint() -> None:
    """Though it was added before there were weights, and how often experts
    run."""
    old = old_model()
    cfg = model_cfg(
        *TASKS, new_tasks=dict(seg2=dict(num_experts=2, like='seg')))
    cfg['tasks']['seg2'] = task_cfg('seg')
    model = MODELS.build(cfg)
    model.load_state_dict(old.state_dict(), strict=False)
    found, expected = (
        predictions(model, task)[-1] for task in ('seg2', 'seg'))
    assert torch.equal(found, expected)
    assert torch.equal(expected, predictions(old, 'seg')[-1])
    usage = old.routing.usage()
    layers = moe_layers(model.backbone)
    for name, layer in layers.items():
        most = usage[name]['seg'].argsort(descending=True)[:2].tolist()
        slots = layer.routers['seg2'].slots
        assert [slots[i].tolist() for i in most] == [[8, most[0]],
                                                     [9, most[1]]]
    # and as itself, once it has learned
    fill(model, .2)
    again = MODELS.build(cfg)
    again.load_state_dict(model.state_dict())
    assert equal(predictions(again, 'seg2'), predictions(model, 'seg2'))


def test_resumed_run_stays_frozen(tmp_path: Path) -> None:
    old = old_model()
    before = {task: predictions(old, task) for task in TASKS}
    torch.save(dict(state_dict=old.state_dict()), tmp_path / 'old.pth')
    args = tmp_path / 'run', tmp_path / 'old.pth', 'lamb'
    run_of_new_task(*args).train()
    runner = run_of_new_task(
        *args,
        load_from=None,
        resume=True,
        train_cfg=dict(
            type='MultiTaskTrainLoop', max_iters=5, val_interval=99))
    runner.train()
    assert runner.iter == 5
    for task in TASKS:
        assert equal(predictions(runner.model, task), before[task])


def train(model: MultiTaskModel, task: str, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=.1)
    model.train()
    for _ in range(steps):
        data = dict(TaskPictures(task[:3]).batch(), task=task)
        data = model.data_preprocessor(data, True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize('num, like', [(0, None), (2, None), (2, 'seg')])
def test_from_python(num: int, like: str) -> None:
    model = old_model()
    before = {task: predictions(model, task) for task in TASKS}
    model.add_task('det', task_cfg('det'), .6, num_experts=num, like=like)
    assert model.tasks == [*TASKS, 'det'] and model.learning == ['det']
    assert model.loss_weights['det'] == .6
    layers = moe_layers(model).values()
    assert all(
        layer.routers['cls'].width == 8 and layer.routers['det'].width == 8 +
        num and len(layer.experts) == 8 + num for layer in layers)
    if like is not None:
        found, expected = (
            predictions(model, task)[-1] for task in ('det', like))
        assert torch.equal(found, expected)
    untrained = predictions(model, 'det')
    train(model, 'det')
    assert not equal(predictions(model, 'det'), untrained)
    for task in TASKS:
        assert equal(predictions(model, task), before[task])
    # one more: the first new task is an old one now
    before['det'] = predictions(model, 'det')
    model.add_task('det2', task_cfg('det'), num_experts=1)
    with pytest.raises(ValueError, match="'det' runs in training"):
        train(model, 'det')
    # its gradients of before are left in no parameter
    train(model, 'det2')
    for task, expected in before.items():
        assert equal(predictions(model, task), expected)


def test_all_may_learn_again() -> None:
    model = old_model()
    learns = {n for n, p in model.named_parameters() if p.requires_grad}
    before = predictions(model, 'cls')
    model.add_task('det', task_cfg('det'))
    learn_tasks(model, model.tasks)
    assert learns < {n for n, p in model.named_parameters() if p.requires_grad}
    train(model, 'det', 1)
    assert not equal(predictions(model, 'cls'), before)


def test_what_the_trunk_freezes_stays_frozen() -> None:
    cfg = model_cfg('cls', 'seg', backbone=moe_cfg(tasks=None))
    cfg['backbone']['trunk'].update(frozen_stages=1)
    model = MODELS.build(cfg)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert any('layers.0.' in name for name in frozen)
    model.add_task('det', task_cfg('det'))
    learn_tasks(model, model.tasks)
    assert frozen == {
        n
        for n, p in model.named_parameters() if not p.requires_grad
    }


def test_dense_backbone() -> None:
    """Only the head is new; statistics of norms stand still."""
    model = MODELS.build(
        model_cfg(
            'cls', 'seg', backbone=resnet(out_indices=(3, )), routing=None))
    before = predictions(model, 'cls')
    model.add_task('det', task_cfg('det'))
    train(model, 'det')
    assert equal(predictions(model, 'cls'), before)
    with pytest.raises(ValueError, match='ResNet has no layer of experts'):
        model.add_task('det2', task_cfg('det'), num_experts=2)


def test_trunk_of_a_file(tmp_path: Path) -> None:
    path = str(tmp_path / 'trunk.safetensors')
    write_moe(path)
    backbone = dict(type='vim_mm.load_moe', checkpoint=path)
    model = MODELS.build(
        model_cfg(
            *TASKS,
            'det',
            backbone=backbone,
            learn_tasks=['det'],
            new_tasks=dict(det=dict(num_experts=1, like='seg'))))
    before = predictions(model, 'cls')
    train(model, 'det')
    assert equal(predictions(model, 'cls'), before)
    with pytest.raises(ValueError, match="no task 'det'; "):
        MODELS.build(
            model_cfg(*TASKS, 'det', backbone=backbone, routing=None))


@pytest.mark.parametrize('mistake, words', [
    (dict(new_tasks=dict(pose=dict())), "no task 'pose'"),
    (dict(new_tasks=dict(seg=dict(num_experts=-1))), 'give 0 or more'),
    (dict(new_tasks=dict(seg=dict(like='pose'))), "no task 'pose'"),
    (dict(new_tasks=dict(seg=dict(), cls=dict())), 'all tasks are new'),
])
def test_mistakes_of_configs(mistake: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MODELS.build(model_cfg(*TASKS, **mistake))


@pytest.mark.parametrize('task, kwargs, words', [
    ('cls', {}, "a task 'cls' already"),
    ('a.b', {}, 'cannot name a task'),
    ('det', dict(num_experts=-1), 'give 0 or more'),
    ('det', dict(like='pose'), "no task 'pose'"),
    ('det', dict(loss_weight=-1), 'loss_weight'),
])
def test_mistakes(task: str, kwargs: dict, words: str) -> None:
    model = old_model()
    before = snapshot(model)
    with pytest.raises(ValueError, match=words):
        model.add_task(task, task_cfg('det'), **kwargs)
    assert model.tasks == TASKS and snapshot(model).keys() == before.keys()
