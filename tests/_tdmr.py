# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Tiny foundation models, students and runs of TDMR."""

import random
from pathlib import Path
from typing import Optional, Sequence

import numpy as np
import torch
from mmengine.runner import Runner

from _tiny import DIMS, SIZE, TRUNKS, Pictures, model_cfg, vit
from vim_mm.models.distillers import TDMRDistiller
from vim_mm.registry import DATASETS, MODELS
from vim_mm.utils.kinds import KINDS

RESNET = dict(TRUNKS['resnet'], out_indices=(3, ))
#: A CNN, a transformer, and a mix of both.
FOUNDATIONS = dict(
    cnn=RESNET,
    vit=vit(out_indices=[2]),
    hybrid=dict(
        type='mmpretrain.MobileViT',
        arch=[['mobilenetv2', 8, 2, 1, 2], ['mobilevit', 16, 2, 8, 16, 1, 2],
              ['mobilevit', 16, 2, 8, 16, 1, 2]],
        stem_channels=8,
        last_exp_factor=2,
        out_indices=(2, )))


def foundation(name: str, **normalise) -> dict:
    """Weights are random; the same ones in every build after one seed."""
    return dict(
        model=dict(
            type='mmpretrain.ImageClassifier',
            backbone=FOUNDATIONS[name],
            data_preprocessor=dict(
                type='mmpretrain.ClsDataPreprocessor',
                **dict(dict(mean=[127.] * 3, std=[128.] * 3), **normalise))))


def student(kind: str = 'cls', family: str = 'vit') -> dict:
    """An ordinary small model of one of two families."""
    cfg = model_cfg(kind, {})
    cfg.backbone = vit(out_indices=[2])
    width = DIMS
    if family == 'cnn':
        cfg.backbone, width = RESNET, 64
    if kind == 'det':
        cfg.neck = dict(
            type='mmdet.ChannelMapper',
            in_channels=[width],
            out_channels=DIMS)
    elif kind == 'cls':
        cfg.neck = dict(type='mmpretrain.GlobalAveragePooling')
        cfg.head.in_channels = width
    else:
        cfg.decode_head.in_channels = width
    return cfg.to_dict()


def config(kind: str = 'cls',
           names: Sequence[str] = ('vit', ),
           family: str = 'vit',
           **kwargs) -> dict:
    return dict(
        dict(
            type='vim_mm.TDMRDistiller',
            student=student(kind, family),
            foundations={name: foundation(name)
                         for name in names},
            proxy=dict(channels=24),
            probe_size=SIZE), **kwargs)


def build(*args, **kwargs) -> TDMRDistiller:
    return MODELS.build(config(*args, **kwargs))


@DATASETS.register_module(force=True)
class Flipped(Pictures):
    """Pictures that numbers of all three libraries change."""

    def __getitem__(self, index: int) -> dict:
        item = super().__getitem__(index)
        noise = random.random() + np.random.rand() + float(torch.rand(()))
        item['inputs'] = (item['inputs'].float() * noise / 3).byte()
        return item


def runner(work_dir: Path,
           model: Optional[dict] = None,
           kind: str = 'cls',
           views: int = 2,
           iters: int = 4,
           hooks: Optional[list] = None,
           proxy: Optional[dict] = None,
           lr: float = 1e-2,
           **kwargs) -> Runner:
    """A run over eight pictures in some views, of four a step."""
    hook = dict(dict(type='vim_mm.ProxyHook', epochs=10), **(proxy or {}))
    dataset = dict(
        type='vim_mm.Views',
        dataset=dict(type='vim_mm.Flipped', kind=kind),
        views=views)
    loader = dict(
        batch_size=4,
        num_workers=0,
        dataset=dataset,
        # mmengine waits two seconds at every end of a finite one
        sampler=dict(type='InfiniteSampler', shuffle=True),
        collate_fn=dict(type='pseudo_collate'))
    checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=iters)
    cfg = dict(
        default_scope=KINDS[kind].scope,
        model=model or config(kind),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=False, max_iters=iters),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=lr)),
        custom_hooks=[hook] if hooks is None else hooks,
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1), checkpoint=checkpoint),
        log_processor=dict(by_epoch=False),
        log_level='WARNING',
        randomness=dict(seed=0),
        experiment_name=f'{work_dir.name}_{id(loader)}')
    # from parts: a whole config would be formatted several times, slowly
    return Runner(**dict(cfg, **kwargs))
