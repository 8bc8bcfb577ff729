# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A task's ordinary model computes what it does in the model of several."""

from typing import Any

import pytest
import torch
from mmengine.config import Config
from torch.utils._pytree import tree_leaves

from _multitask import TASKS, TaskPictures, moe, multitask_cfg, resnet
from vim_mm.models import build_model
from vim_mm.models.multitask import task_checkpoint, task_config, task_state
from vim_mm.models.tasks import select_task

MODELS = dict(
    dense=dict(backbone=resnet()),
    experts=dict(backbone=moe()),
    grown=dict(backbone=moe(), new_tasks=dict(seg=dict(num_experts=1))))


def whole(**model: Any) -> Config:
    return Config(dict(model=multitask_cfg(**model), default_scope='vim_mm'))


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('name', list(MODELS))
def test_outputs_are_the_same(name: str, task: str) -> None:
    cfg = whole(**MODELS[name])
    model = build_model(cfg).eval()
    own = build_model(task_config(cfg, task)).eval()
    own.load_state_dict(task_state(model.state_dict(), task))
    select_task(model, task)
    batch = TaskPictures(task).batch()
    with torch.no_grad():
        first, second = (
            tree_leaves([s.to_dict() for s in each.test_step(batch)])
            for each in (model, own))
    assert len(first) == len(second) > 8
    assert all(
        torch.equal(a, b) for a, b in zip(first, second)
        if isinstance(a, torch.Tensor))


def test_the_config_is_an_ordinary_one() -> None:
    cfg = whole(backbone=moe())
    before = cfg.model.to_dict()
    cfg.merge_from_dict(
        dict(
            train_cfg=dict(
                type='MultiTaskTrainLoop', max_iters=5, weights=dict(cls=1)),
            val_cfg=dict(type='MultiTaskValLoop', fp16=True),
            val_evaluator=dict(det=dict(type='CocoMetric')),
            default_hooks=dict(
                checkpoint=dict(save_best='det/coco/bbox_mAP')),
            custom_hooks=[
                dict(type='WarmHeadHook', epochs=1, task='det'),
                dict(type='WarmHeadHook', epochs=1, task='seg'),
                dict(type='EMAHook')
            ]))
    own = task_config(cfg, 'det')
    assert own.train_cfg == dict(by_epoch=False, max_iters=5)
    assert own.val_cfg == dict(fp16=True)
    assert own.val_evaluator == dict(type='CocoMetric')
    assert own.default_scope == 'mmdet'
    assert own.default_hooks.checkpoint.save_best == 'coco/bbox_mAP'
    assert own.custom_hooks == [
        dict(type='WarmHeadHook', epochs=1),
        dict(type='EMAHook')
    ]
    assert own.model.backbone.task == 'det'
    assert own.model.backbone.tasks == TASKS
    assert task_config(
        cfg, 'cls').default_hooks.checkpoint.get('save_best') is None
    assert cfg.model.to_dict() == before


def test_names_of_no_task() -> None:
    cfg = whole()
    with pytest.raises(ValueError, match="no task 'pose'; the config knows"):
        task_config(cfg, 'pose')
    with pytest.raises(ValueError, match='of one task only'):
        task_config(task_config(cfg, 'det'), 'det')
    state = build_model(cfg).state_dict()
    with pytest.raises(ValueError, match="no task 'pose'; the checkpoint"):
        task_state(state, 'pose')
    with pytest.raises(ValueError, match='say which of them is meant'):
        task_checkpoint(dict(state_dict=state), None)
    single = dict(state_dict=task_state(state, 'det'))
    kept = dict(single['state_dict'])
    assert not task_checkpoint(single, 'det')
    assert single['state_dict'] == kept
