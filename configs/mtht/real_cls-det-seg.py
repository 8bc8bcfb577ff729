# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Clothes, tree crowns and driving scenes in one mixture of experts.

Command:

    python tools/train.py configs/mtht/real_cls-det-seg.py

Expected result: docs/evidence/README.md, with the dense twin and one model
for each task beside it. Hardware: one CPU core, about three minutes.

From MTHT's code (arXiv 2306.17165): 4 experts a token, of a quarter of the
MLP each, routers of two layers, the mutual information loss, one task a step,
loss weights 1 / 0.6 / 0.2. Ours: ViT-S/14 with weights, whose MLPs become 8
experts each with gates that keep the magnitude; warm heads; AdamW at rates
chosen on images held out of the training sets; task weights 3:4:2, as a step
of detection has the fewest images; and the mutual information loss begins
after 5 steps of a task and weighs a thousand times more, or a schedule as
short as this one would not see it.
"""
import importlib

_base_ = [
    '../_base_/models/mtht_joint.py',
    '../_base_/schedules/mtht_joint.py',
]

join_tasks = importlib.import_module('vim_mm.utils.join_tasks').join_tasks
parts = join_tasks(
    cls='{{fileDirname}}/real_single/clothing_cls.py',
    det='{{fileDirname}}/real_single/tree-crowns_det.py',
    seg='{{fileDirname}}/real_single/camvid_seg.py')

model = dict(
    backbone=dict(trunk=parts.tasks.cls.backbone), tasks=parts.tasks)

# on some hundred images each
custom_hooks = [
    dict(type='vim_mm.WarmHeadHook', task='cls', epochs=10, max_batches=40),
    dict(type='vim_mm.WarmHeadHook', task='det', epochs=4, max_batches=50),
    dict(type='vim_mm.WarmHeadHook', task='seg', epochs=4, max_batches=30)
]

train_dataloader = parts.train_dataloader
val_dataloader = parts.val_dataloader
val_evaluator = parts.val_evaluator
test_dataloader = parts.test_dataloader
test_evaluator = parts.test_evaluator

max_iters = 60
train_cfg = dict(
    max_iters=max_iters,
    val_interval=max_iters,
    weights=dict(cls=3, det=4, seg=2))

# half the demo's rate of the backbone, a quarter of the heads'
optim_wrapper = dict(
    optimizer=dict(lr=5e-5),
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=0.2),
            '.routers.': dict(lr_mult=20.)
        }))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, end=6, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        begin=6,
        end=max_iters,
        eta_min_ratio=1e-3,
        by_epoch=False)
]
default_hooks = dict(checkpoint=dict(interval=max_iters))

del parts, join_tasks
