# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Whole runs of three tasks."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS as METRIC_TYPES

from _loading import lines
from _multitask import (METRICS, TASKS, build, loader, moe, multitask_cfg,
                        task_cfg)
from vim_mm.engine.loops import multitask_loops
from vim_mm.engine.loops.multitask_loops import TaskMetrics


def test_a_run_trains_and_judges_every_task(tmp_path: Path) -> None:
    runner = build(tmp_path, 12, load_from=None)
    before = {k: v.clone() for k, v in runner.model.state_dict().items()}
    runner.train()
    scalars = runner.message_hub.log_scalars
    for name in ('cls/accuracy/top1', 'det/pascal_voc/mAP', 'seg/mIoU'):
        assert len(scalars[f'val/{name}'].data[0]) == 1
    for name in ('cls/loss', 'det/loss_bbox', 'seg/decode.loss_ce'):
        assert scalars[f'train/{name}'].data[0].size
    after = runner.model.state_dict()
    for task in TASKS:
        assert any(not torch.equal(before[key], after[key]) for key in after
                   if key.startswith(f'models.{task}.'))


def test_metrics_are_those_of_each_library(tmp_path: Path) -> None:
    """A run of one task alone measures the same of the same weights."""
    runner = build(tmp_path / 'all', 4)
    runner.train()
    path = str(tmp_path / 'all' / 'iter_4.pth')
    together = {
        key[4:]: buffer.current()
        for key, buffer in runner.message_hub.log_scalars.items()
        if key.startswith('val/') and not key.endswith('time')
    }
    alone = {}
    for task in TASKS:
        model = multitask_cfg(task)
        one = build(
            tmp_path / task,
            model=model,
            load_from=path,
            train_dataloader=None,
            train_cfg=None,
            optim_wrapper=None,
            val_dataloader={task: loader(task, train=False)},
            val_evaluator={task: METRICS[task]})
        alone.update(one.val())
    assert together == alone and len(alone) > 4


@pytest.mark.parametrize('key', ['det/pascal_voc/mAP', 'seg/mIoU'])
def test_the_best_checkpoint_is_that_of_any_task(tmp_path: Path,
                                                 key: str) -> None:
    hooks = dict(
        logger=dict(type='LoggerHook'),
        checkpoint=dict(
            type='CheckpointHook', by_epoch=False, interval=2, save_best=key))
    build(tmp_path, 2, default_hooks=hooks).train()
    assert (tmp_path / f'best_{key.replace("/", "_")}_iter_2.pth').exists()


@METRIC_TYPES.register_module()
class FoundNothing(BaseMetric):

    default_prefix = 'coco'

    def process(self, data_batch: Any, data_samples: list) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict:
        return {}


def test_a_detector_that_finds_nothing_is_no_best(tmp_path: Path) -> None:
    hooks = dict(
        logger=dict(type='LoggerHook'),
        checkpoint=dict(
            type='CheckpointHook',
            by_epoch=False,
            interval=2,
            rule='greater',
            save_best='det/coco/bbox_mAP'))
    build(
        tmp_path,
        2,
        default_hooks=hooks,
        val_evaluator=dict(METRICS,
                           det=dict(type='mmengine.FoundNothing'))).train()
    assert not list(tmp_path.glob('best_*'))
    assert (tmp_path / 'iter_2.pth').exists()


def test_metrics_that_there_are_not_are_named() -> None:
    metrics = TaskMetrics()
    metrics.add('det', {})
    metrics.add('cls', {'accuracy/top1': 1.})
    assert metrics['det/coco/bbox_mAP'] is None
    with pytest.raises(KeyError, match='cls/accuracy/top1'):
        metrics['cls/accuracy/top5']


def test_two_data_sets_of_one_kind(tmp_path: Path) -> None:
    """Each has classes, a head and metrics of its own."""
    second = task_cfg('det')
    second.bbox_head.num_classes = 2
    model = multitask_cfg('det')
    model.tasks.other = second
    other = dict(kind='det', classes=('circle', 'square'))
    runner = build(
        tmp_path,
        6,
        model=model,
        train_dataloader=dict(
            det=loader('det'), other=loader('det', 3, dataset=other)),
        train_cfg=dict(type='MultiTaskTrainLoop', max_iters=6),
        val_dataloader=dict(
            det=loader('det', train=False),
            other=loader('det', train=False, dataset=other)),
        val_evaluator=dict(det=METRICS['det'], other=METRICS['det']))
    runner.train()
    values = runner.message_hub.log_scalars
    assert 'val/det/pascal_voc/mAP' in values
    assert 'val/other/pascal_voc/mAP' in values


@pytest.mark.parametrize('routes', [False, True])
def test_losses_of_a_task_that_count_nothing(
        routes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its routing may still be learned."""
    cfg = multitask_cfg(loss_weights=dict(cls=1., det=1., seg=0.))
    if routes:
        cfg.backbone = moe()
        cfg.routing = dict(type='vim_mm.MutualInformation', start=0)
    told = lines(monkeypatch, multitask_loops)
    run = build(tmp_path, 3, model=cfg, val_dataloader=None,
                val_evaluator=None, val_cfg=None)
    words = "The task 'seg' is drawn, .* steps teach "
    if not routes:
        with pytest.raises(ValueError, match=f'{words}nothing'):
            run.train()
        return
    run.train()
    assert sum(bool(re.search(f'{words}routing alone', each))
               for each in told) == 1
