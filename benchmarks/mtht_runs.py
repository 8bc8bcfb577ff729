# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Trains, judges and counts the models of ``mtht_evidence.py``."""

import hashlib
from contextlib import contextmanager
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence
from uuid import uuid4

import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner, set_random_seed
from torch import nn

from vim_mm.datasets import TaskBatchSampler
from vim_mm.models import build_model
from vim_mm.models.moe import moe_layers
from vim_mm.models.moe.counting import count_moe, count_rest
from vim_mm.models.moe.statistics import (Routing, RoutingStatistics,
                                          information)
from vim_mm.models.multitask import MultiTaskModel
from vim_mm.models.tasks import select_task

from mtht_data import NEW  # isort:skip

#: what each task is judged by
METRICS = dict(
    cls='cls/accuracy/top1',
    det='det/coco/bbox_mAP_50',
    seg='seg/mIoU',
    cifar='cifar/accuracy/top1')

# ------------------------------------------------------------------ models


def build(cfg: Config, kind: str, seed: int) -> MultiTaskModel:
    """An untrained model of the three tasks.

    Args:
        cfg (Config): See :func:`read_config`.
        kind (str): ``'moe'``, ``'moe-no-mi'`` or ``'dense'``.
        seed (int): Of routers and heads.
    """
    set_random_seed(seed)
    cfg = deepcopy(cfg)
    if kind == 'dense':
        cfg.model.backbone = cfg.model.backbone.trunk
        cfg.model.routing = None
    elif kind == 'moe-no-mi':  # routing is counted, and has no loss
        cfg.model.routing.weight = 0.
    model = build_model(cfg)
    model.init_weights()
    return model


def add_new_task(model: MultiTaskModel, cfg: Config, seed: int,
                 **experts: Any) -> None:
    """Give a trained model the new task, which then learns alone."""
    set_random_seed(seed)
    model.add_task(NEW, deepcopy(cfg.new_task), **experts)
    model.routing = None
    model.models[NEW].init_weights()


def steps_of(weights: Mapping[str, float], steps: int,
             seed: int) -> Dict[str, int]:
    """How many of a joint run's steps each task gets."""
    ones = dict.fromkeys(weights, 1)
    sampler = TaskBatchSampler(ones, ones, weights, steps, ones)
    sampler.seek(seed, 0)
    drawn = [sampler.task_at(step) for step in range(steps)]
    return {task: drawn.count(task) for task in weights}


# --------------------------------------------------------------- running


def _runner(model: MultiTaskModel, cfg: Config, work_dir: Path, seed: int,
            **parts: Any) -> Runner:
    hooks = dict(
        cfg.default_hooks, checkpoint=None, logger=dict(
            type='LoggerHook', interval=50))
    return Runner(
        model=model,
        work_dir=str(work_dir),
        default_hooks=hooks,
        env_cfg=cfg.env_cfg,
        log_processor=dict(by_epoch=False, window_size=20),
        log_level='WARNING',
        randomness=dict(seed=seed),
        default_scope='vim_mm',
        experiment_name=uuid4().hex,
        **parts)


def train(model: MultiTaskModel,
          cfg: Config,
          weights: Mapping[str, float],
          steps: int,
          seed: int,
          work_dir: Path,
          rates: Optional[Mapping[str, float]] = None,
          warm: bool = False) -> None:
    """Train a model in place as the config says.

    Args:
        model (MultiTaskModel): The model.
        cfg (Config): See :func:`read_config`.
        weights (Mapping[str, float]): How often each task is drawn; others
            are not.
        steps (int): How many.
        seed (int): Of tasks, images and augmentation.
        work_dir (Path): For logs.
        rates (Mapping[str, float], optional): What the learning rate is
            multiplied by where a parameter's name holds the key.
        warm (bool): Warm the heads first. Defaults to False.
    """
    cfg = deepcopy(cfg)
    warm, cosine = cfg.param_scheduler
    warm.end = cosine.begin = max(1, steps // 10)
    cosine.end = max(steps, warm.end + 1)
    keys = cfg.optim_wrapper.paramwise_cfg.custom_keys
    for key, rate in (rates or {}).items():
        keys[key] = ConfigDict(lr_mult=rate)
    runner = _runner(
        model,
        cfg,
        work_dir,
        seed,
        train_dataloader={t: cfg.train_dataloader[t]
                          for t in model.tasks},
        train_cfg=dict(
            type='vim_mm.MultiTaskTrainLoop',
            max_iters=steps,
            weights={t: weights.get(t, 0)
                     for t in model.tasks}),
        custom_hooks=[
            h for h in cfg.custom_hooks if warm and h.task in weights
        ],
        optim_wrapper=cfg.optim_wrapper,
        param_scheduler=cfg.param_scheduler)
    runner.train()


def judge(model: MultiTaskModel,
          cfg: Config,
          work_dir: Path,
          tasks: Optional[Sequence[str]] = None) -> Dict[str, Any]:
    """Metrics of some tasks, all when None, by their libraries.

    Returns:
        dict: ``metrics`` in percent; ``digest`` of the trunk's maps of all
        images, by task; of several tasks I(T;E) in nats by layer, of
        probabilities (``information``) and of the ``chosen`` experts.
    """
    tasks = model.tasks if tasks is None else tasks
    parts = {
        part: {t: cfg[part][t] if t in tasks else None
               for t in model.tasks}
        for part in ('val_dataloader', 'val_evaluator')
    }
    runner = _runner(
        model,
        cfg,
        work_dir,
        0,
        val_cfg=dict(type='vim_mm.MultiTaskValLoop'),
        **parts)
    with _digests(model) as digests, _routing(model) as seen:
        found = runner.val()
    metrics = {}
    for task in tasks:  # mmdet gives no metric where nothing is found
        value = float(found.get(METRICS[task], 0.))
        metrics[task] = 100 * value if task == 'det' else value
    result = dict(
        metrics=metrics,
        digest={t: d.hexdigest()
                for t, d in digests.items()})
    if seen is not None and len(tasks) > 1:
        for name, of in (('information', seen.probabilities),
                         ('chosen', seen.hits)):
            rows = [[of(layer, t) for t in tasks] for layer in seen.layers]
            result[name] = [_information(each) for each in rows]
    return result


def _information(rows: List[torch.Tensor]) -> float:
    rows = [row.mean(0) if row.dim() > 1 else row / row.sum() for row in rows]
    return information(rows).item()


@contextmanager
def _routing(model: MultiTaskModel) -> Iterator[Optional[Routing]]:
    if not moe_layers(model.backbone):
        yield None
        return
    with RoutingStatistics().record(model.backbone) as seen:
        yield seen


@contextmanager
def _digests(model: MultiTaskModel) -> Iterator[Dict[str, Any]]:
    found: Dict[str, Any] = {}

    def add(_: nn.Module, inputs: tuple, maps: tuple) -> None:
        digest = found.setdefault(model.task, hashlib.sha256())
        for each in maps:
            digest.update(each.contiguous().numpy().tobytes())

    handle = model.backbone.register_forward_hook(add)
    try:
        yield found
    finally:
        handle.remove()


@torch.no_grad()
def measure_usage(model: MultiTaskModel, cfg: Config,
                  task: str) -> Dict[str, Dict[str, torch.Tensor]]:
    """How often training images of a task run each expert."""
    model.eval()
    select_task(model, task)
    with model.in_scope(task):
        loader = Runner.build_dataloader(cfg.train_dataloader[task], seed=0)
    with RoutingStatistics().record(model.backbone) as seen:
        for batch in islice(loader, 25):
            data = model.models[task].data_preprocessor(batch, False)
            model.backbone(data['inputs'])
    return {layer: {task: seen.hits(layer, task)} for layer in seen.layers}


# --------------------------------------------------------------- counting


def count(model: MultiTaskModel, task: str, size: int) -> Dict[str, int]:
    """What a task's pass costs.

    Returns:
        dict: ``trained`` parameters, heads included; of the trunk ``stored``
        and ``active`` ones, and ``macs`` of an image.
    """
    trunk = model.backbone
    select_task(model, task)
    cost = count_moe(trunk, size)['total']
    return dict(
        trained=cost.trained + count_rest(model, trunk).trained,
        stored=cost.stored,
        active=cost.active,
        macs=cost.macs)
