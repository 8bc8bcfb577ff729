# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""One small backbone that learns to classify, detect and segment."""

import random
from pathlib import Path
from typing import Any, Dict, Optional

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.runner import Runner

from _tiny import DIMS, SCOPES, Pictures, model_cfg
from vim_mm.registry import DATASETS

CLASSES = dict(cls=('red', 'white'), det=('square', ), seg=('noise', 'square'))
METRICS = dict(
    cls=dict(type='Accuracy'),
    det=dict(type='VOCMetric', eval_mode='area'),
    seg=dict(type='IoUMetric'))
TASKS = list(SCOPES)

#: no scalar parameters, which mmpretrain's Lamb does not take
RETINA = dict(
    type='RetinaHead',
    num_classes=1,
    in_channels=8,
    feat_channels=8,
    stacked_convs=1,
    anchor_generator=dict(
        type='AnchorGenerator',
        scales=[2, 3],
        ratios=[1.],
        strides=[8, 16, 32]))


@DATASETS.register_module()
class TaskPictures(Pictures):
    """Tiny pictures whose noise is new every time they are read."""

    def __init__(self,
                 kind: str,
                 num: int = 8,
                 noisy: bool = True,
                 classes: Optional[tuple] = None,
                 pipeline: tuple = ()) -> None:
        # the pipeline is for inferencers
        super().__init__(kind, num)
        self.noisy = noisy
        self.metainfo = dict(classes=classes or CLASSES[kind])

    def __getitem__(self, index: int) -> dict:
        sample = super().__getitem__(index)
        if self.noisy:
            noise = random.random() + np.random.rand() + torch.rand(
                sample['inputs'].shape)
            sample['inputs'] = (sample['inputs'] / 2 + 30 * noise).byte()
        return sample


def resnet(**kwargs: Any) -> dict:
    """A ResNet whose last map, of DIMS channels, all heads read."""
    cfg = dict(
        type='mmpretrain.ResNet',
        depth=18,
        stem_channels=8,
        base_channels=DIMS // 8,
        out_indices=(1, 2, 3))
    return dict(cfg, **kwargs)


def convnext(**kwargs: Any) -> dict:
    """A trunk without batch norm, whose maps are those of the ResNet."""
    cfg = dict(
        type='mmpretrain.ConvNeXt',
        arch=dict(depths=[1, 1, 2, 1], channels=[4, 8, 16, 32]),
        gap_before_final_norm=False,
        out_indices=(1, 2, 3))
    return dict(cfg, **kwargs)


def moe(**kwargs: Any) -> dict:
    """Four experts in the place of each MLP of that trunk."""
    return dict(
        type='vim_mm.to_moe', trunk=convnext(**kwargs), num_experts=4, k=2)


def task_cfg(kind: str) -> ConfigDict:
    """An ordinary model of a kind with a backbone of its own."""
    cfg = model_cfg(kind, resnet())
    cfg.pop('backbone')
    cfg.backbone = dict(type='mmpretrain.MobileNetV2')
    if kind == 'cls':
        cfg.neck = dict(type='GlobalAveragePooling')
    if kind == 'det':
        cfg.type = 'mmdet.RetinaNet'
        cfg.neck = dict(
            type='FPN', in_channels=[8, 16, 32], out_channels=8, num_outs=3)
        cfg.bbox_head = RETINA
        cfg.train_cfg = dict(
            assigner=dict(
                type='MaxIoUAssigner',
                pos_iou_thr=0.5,
                neg_iou_thr=0.4,
                min_pos_iou=0),
            allowed_border=-1,
            pos_weight=-1)
    return cfg


def multitask_cfg(*tasks: str, **kwargs: Any) -> ConfigDict:
    """A model of some kinds of task, all by default."""
    cfg = dict(
        type='vim_mm.MultiTaskModel',
        backbone=resnet(),
        tasks={kind: task_cfg(kind)
               for kind in tasks or TASKS})
    return ConfigDict(cfg, **kwargs)


def loader(kind: str, batch_size: int = 2, **kwargs: Any) -> dict:
    """An ordinary loader of tiny pictures."""
    train = kwargs.pop('train', True)
    cfg = dict(
        batch_size=batch_size,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=train),
        dataset=dict(type='vim_mm.TaskPictures', kind=kind, noisy=train))
    cfg['dataset'].update(kwargs.pop('dataset', {}))
    return dict(cfg, **kwargs)


def run_cfg(folder: Path, iters: int = 4, **kwargs: Any) -> Dict[str, Any]:
    """A whole run of the three tasks."""
    cfg = dict(
        model=multitask_cfg(),
        work_dir=str(folder),
        default_scope='vim_mm',
        train_dataloader={kind: loader(kind)
                          for kind in TASKS},
        train_cfg=dict(
            type='MultiTaskTrainLoop',
            max_iters=iters,
            val_interval=iters,
            weights=dict(cls=15, det=10, seg=5)),
        val_dataloader={kind: loader(kind, train=False)
                        for kind in TASKS},
        val_evaluator=dict(METRICS),
        val_cfg=dict(type='MultiTaskValLoop'),
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
            clip_grad=dict(max_norm=10.)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(
                type='CheckpointHook', by_epoch=False, interval=iters)),
        log_processor=dict(by_epoch=False),
        log_level='WARNING',
        randomness=dict(seed=0),
        experiment_name=folder.name)
    cfg.update(kwargs)
    return cfg


def build(folder: Path, iters: int = 4, **kwargs: Any) -> Runner:
    return Runner.from_cfg(ConfigDict(run_cfg(folder, iters, **kwargs)))
