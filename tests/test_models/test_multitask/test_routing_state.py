# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Running means outlive restarts, averaging and new structure."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from _routing import DIMS, TASKS, bound, run, tokens, trunk
from mmengine.config import ConfigDict
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import load_state_dict
from torch import nn

from _multitask import TASKS as KINDS
from _multitask import TaskPictures, build, multitask_cfg, resnet
from _tiny import same, snapshot
from vim_mm.models.moe import MoEAttention
from vim_mm.models.moe.collapse import similarity
from vim_mm.models.moe.statistics import RoutingStatistics
from vim_mm.registry import MODELS

STEPS = ['a', 'c', 'a', 'a', 'b', 'c', 'a', 'b', 'a']


# ---------------------------------------------------------------- restarts


@pytest.mark.parametrize('stop', [0, 1, 4, 8])
def test_resumed_equals_uninterrupted(stop: int, tmp_path: Path) -> None:
    kwargs = dict(start=2, momentum=.7)
    model, path = trunk(), tmp_path / 'state.pth'
    whole = bound(model, **kwargs)
    part = bound(model, **kwargs)
    for step, task in enumerate(STEPS):
        if step == stop:
            torch.save(part.state_dict(), path)
            part = bound(model, **kwargs)
            part.load_state_dict(torch.load(path))
        expected = run(model, whole, task, tokens(step))
        found = run(model, part, task, tokens(step))
        assert torch.equal(found['loss_mi'], expected['loss_mi'])
    assert same(snapshot(whole), snapshot(part))


def moe_cfg() -> ConfigDict:
    """Three tasks over a Swin with experts."""
    backbone = dict(
        type='vim_mm.to_moe',
        trunk=dict(
            type='mmpretrain.SwinTransformer',
            arch=dict(
                embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 4]),
            out_indices=(1, 2, 3),
            window_size=4,
            pad_small_map=True),
        num_experts=4,
        k=2,
        tasks=KINDS)
    cfg = multitask_cfg(backbone=backbone)
    cfg.tasks.cls.head.in_channels = 64
    cfg.tasks.det.neck.in_channels = [16, 32, 64]
    cfg.tasks.seg.decode_head.in_channels = 64
    cfg.routing = dict(type='vim_mm.MutualInformation', weight=.01, start=1)
    return cfg


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Of a whole model, its loader, optimizer and running means."""

    def runner(name: str, **kwargs):
        hooks = dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(
                type='CheckpointHook', by_epoch=False, interval=4))
        return build(
            tmp_path / name,
            8,
            model=moe_cfg(),
            default_hooks=hooks,
            train_cfg=dict(type='MultiTaskTrainLoop', max_iters=8),
            val_cfg=None,
            val_dataloader=None,
            val_evaluator=None,
            **kwargs)

    whole = runner('whole')
    whole.train()
    part = runner(
        'part', load_from=str(tmp_path / 'whole/iter_4.pth'), resume=True)
    part.train()
    assert part.iter == 8
    assert same(snapshot(whole.model), snapshot(part.model))
    rows = whole.model.routing.rows(whole.model.routing.layers[0])
    assert sum(float(row.count) for row in rows.values()) == 8
    history, _ = whole.message_hub.get_scalar('train/cls/loss_mi').data
    assert any(value != 0 for value in history)


@pytest.mark.parametrize('update_buffers', [False, True])
def test_averaged_models_follow(update_buffers: bool) -> None:
    """Counters are floats, which averaging does not leave behind."""
    model = nn.ModuleDict(dict(trunk=trunk()))
    model['routing'] = bound(model['trunk'], start=2)
    average = ExponentialMovingAverage(
        model, momentum=.5, update_buffers=update_buffers)
    frozen = None
    for step in range(40):
        task = 'c' if step < 3 else 'ab'[step % 2]
        run(model['trunk'], model['routing'], task, tokens(step % 2))
        average.update_parameters(model)
        if step == 20:
            frozen = deepcopy(average.module['routing'].rows('first')['c'])
    for layer in ('first', 'blocks.0'):
        for task in TASKS:
            mine = model['routing'].rows(layer)[task]
            other = average.module['routing'].rows(layer)[task]
            torch.testing.assert_close(
                other.mean, mine.mean, atol=.01, rtol=.01)
            assert float(mine.count - other.count) <= 2
    if not update_buffers:
        last = average.module['routing'].rows('first')['c']
        assert same(snapshot(last), snapshot(frozen))


# --------------------------------------------------------------- structure


def test_new_tasks_leave_old_rows() -> None:
    model = trunk()
    routing = bound(model)
    for step, task in enumerate(STEPS):
        run(model, routing, task, tokens(step))
    before = snapshot(routing)
    for layer in model.layers:
        layer.add_task('d', 3)
    routing.bind(model, [*TASKS, 'd'])
    for step in range(5):
        losses = run(model, routing, 'd', tokens(step))
        assert losses['loss_mi'] != 0
    after = snapshot(routing)
    assert same(before, {key: after[key] for key in before})
    assert len(routing.rows('first')['d']) == 9
    assert [len(row) for row in routing.rows('first').values()] == [6, 6, 6, 9]
    # what was saved before loads into what has grown
    fresh = bound(model, [*TASKS, 'd'])
    load_state_dict(fresh, before, strict=False)
    assert same(before, {key: snapshot(fresh)[key] for key in before})
    assert fresh.rows('first')['d'].count == 0


def test_a_new_task_of_a_model_has_rows_of_its_own() -> None:
    model = MODELS.build(moe_cfg())

    def step(task: str) -> dict:
        data = TaskPictures('seg' if task == 'new' else task).batch()
        data = model.data_preprocessor(dict(data, task=task), True)
        return model(**data, mode='loss')

    for task in KINDS:
        step(task)
    old = snapshot(model.routing)
    model.add_task('new', moe_cfg().tasks.seg, num_experts=2)
    for _ in range(3):
        losses = step('new')
    assert losses['new/loss_mi'] != 0
    now = snapshot(model.routing)
    assert same(old, {key: now[key] for key in old})
    assert len(now) == len(old) * 4 // 3
    row = model.routing.rows(model.routing.layers[0])['new']
    assert row.count == 3 and len(row) == 6


def test_pruned_routers_are_read_by_what_is_stored() -> None:
    model = trunk()
    routing = bound(model)
    run(model, routing, 'a', tokens(0))
    model.first.keep([1, 2, 5])
    routing.bind(model, TASKS)
    assert len(routing.rows('first')['a']) == 3
    assert routing.rows('first')['a'].count == 0
    assert routing.rows('blocks.0')['a'].count == 1
    run(model, routing, 'a', tokens(1))
    row = routing.rows('first')['a']
    logits = model.first.routers['a'].net(tokens(1))[:, [1, 2, 5]]
    torch.testing.assert_close(row.mean, logits.softmax(-1).mean(0).detach())
    assert float(row.usage.sum()) == pytest.approx(2)


def test_steps_that_overflow_are_left_out() -> None:
    model = trunk()
    routing = bound(model)
    run(model, routing, 'a', tokens(0))
    before = snapshot(routing)
    run(model, routing, 'a', tokens(1) * float('nan'))
    run(model, routing, 'b', tokens(1) * float('nan'))
    assert same(before, snapshot(routing))
    run(model, routing, 'b', tokens(1))
    assert all(
        torch.isfinite(value).all() for value in snapshot(routing).values())


def test_statistics_of_one_router_for_all() -> None:
    model = trunk(None)
    statistics = RoutingStatistics()
    statistics.bind(model)
    with statistics.record(model) as seen:
        model(tokens(0))
    statistics.update(seen)
    assert list(statistics.usage()) == ['first', 'blocks.0']
    usage = statistics.usage()['first']['all']
    index = model.first.choose(model.first.router(tokens(0)))[1]
    expected = torch.bincount(index.flatten(), minlength=6) / 9
    torch.testing.assert_close(usage, expected)
    assert statistics.information('first') == 0


@pytest.mark.parametrize('tokens_of', [(2, 3, DIMS), (1, 2, 2, DIMS)])
def test_any_layout_of_tokens(tokens_of: tuple) -> None:
    model = trunk()
    routing = bound(model)
    x = torch.randn(tokens_of)
    run(model, routing, 'a', x)
    other = bound(model)
    run(model, other, 'a', x.flatten(0, -2))
    assert same(snapshot(routing), snapshot(other))


def test_attention_experts_are_read() -> None:
    model = nn.ModuleDict(
        dict(attn=MoEAttention(DIMS, 4, 6, 2, TASKS, router='linear')))
    model.forward = model['attn'].forward
    routing = bound(model, weight=1.)
    x = tokens(0, 12).unflatten(0, (2, 6))
    for task in 'bca':
        loss = run(model, routing, task, x)['loss_mi']
    loss.backward()
    router = model['attn'].routers['a']
    assert next(router.parameters()).grad.abs().max() > 0
    row = routing.rows('attn')['a']
    torch.testing.assert_close(row.mean, router(x.flatten(0, 1)).mean(0))
    assert row.usage.sum() == 2
    assert similarity(model['attn'].experts).shape == (6, 5)


def test_a_dense_backbone_cannot_have_losses_of_routing() -> None:
    cfg = multitask_cfg('cls', backbone=resnet())
    cfg.routing = dict(type='vim_mm.MutualInformation')
    with pytest.raises(ValueError, match='of experts, but ResNet has none; '
                       'take a backbone with experts, or leave `routing` out'):
        MODELS.build(cfg)
