# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The demo's MoE trunk adapted to a new task: solar cells, by routers alone.

    make demo-mtht    # writes the trunk this starts from
    python tools/train.py configs/mtht/demo_adapt-solar-cells.py

Expect, on two CPU cores, a minute; results in README.md. What learns is a
switch of ``load_moe``: ``train='routers'`` (here); ``train=['routers',
'experts'], experts=dict(num=1, select='new')`` (or ``'most'``, ``'least'``
used); ``train='all'``. ``threshold=3`` drops what the task ``like`` does not
use, ``k`` runs fewer experts. They compose.

From MTHT: new routers and a new head over frozen experts. MTHT's code lets
attention and norms learn beside them; here they are frozen, too
(``train=['routers', 'shared']`` is theirs). Data, head and schedule are ours.
"""
_base_ = [
    '../_base_/datasets/demo/solar_cells.py',
    '../_base_/schedules/mtht_demo.py',
]

model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(
        type='vim_mm.load_moe',
        checkpoint='work_dirs/demo_mtht/joint/trunk.safetensors',
        task='solar',
        like='cls',
        train='routers'),
    neck=dict(
        type='vim_mm.StandardizedPooling',
        in_channels='auto',
        num_extra_tokens=0),
    head=dict(
        type='mmpretrain.LinearClsHead',
        num_classes=2,
        in_channels='auto',
        loss=dict(type='mmpretrain.CrossEntropyLoss'),
        init_cfg=dict(type='Constant', layer='Linear', val=0.)))

custom_hooks = [dict(type='vim_mm.WarmHeadHook', epochs=10, evaluate=True)]

train_cfg = dict(max_iters=40, val_interval=40)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, end=10, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        begin=10,
        end=40,
        eta_min_ratio=1e-3,
        by_epoch=False)
]
