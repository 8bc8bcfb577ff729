# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Digits, tree crowns and digit masks in one mixture of experts: the demo.

    python tools/train.py configs/mtht/demo_cls-det-seg.py

Expect 6 minutes on one CPU core and 2.2 GB; results in README.md. `make
demo-mtht` prepares data and weights and runs it with all that follows.

From MTHT's code (arXiv 2306.17165): 4 experts a token, each with a quarter of
an MLP's hidden units, routers of two layers, the mutual information loss, one
task a step, drawn 15:10:5, loss weights 1 / 0.6 / 0.2. Ours: a ViT-S/14 with
weights, whose MLPs become 8 experts each with gates that keep the magnitude;
heads that are warmed on cached features first; AdamW; and the loss of mutual
information begins early and weighs more, or a schedule as short as this one
would not see it.
"""
import importlib

_base_ = [
    '../_base_/models/mtht_joint.py',
    '../_base_/schedules/mtht_joint.py',
]

# each task's ordinary config, of which the dense backbone alone is replaced
join_tasks = importlib.import_module('vim_mm.utils.join_tasks').join_tasks
parts = join_tasks(
    cls='{{fileDirname}}/demo_single/digits_cls.py',
    det='{{fileDirname}}/demo_single/tree-crowns_det.py',
    seg='{{fileDirname}}/demo_single/digits_seg.py')

module_card = dict(
    dataset='scikit-learn digits on packaged photographs + tree crowns '
    '(deepforest 2.1.0)',
    licence='CC BY 4.0 AND CC BY 2.0 AND CC0 AND MIT')
model = dict(
    backbone=dict(
        trunk=parts.tasks.cls.backbone, tasks=['cls', 'det', 'seg']),
    tasks=parts.tasks)

custom_hooks = [
    dict(type='vim_mm.WarmHeadHook', task='cls', epochs=10),
    dict(type='vim_mm.WarmHeadHook', task='det', epochs=6),
    dict(type='vim_mm.WarmHeadHook', task='seg', epochs=6, evaluate=True),
    dict(type='vim_mm.RoutingLogHook', interval=20)
]

train_dataloader = parts.train_dataloader
val_dataloader = parts.val_dataloader
val_evaluator = parts.val_evaluator
test_dataloader = parts.test_dataloader
test_evaluator = parts.test_evaluator

train_cfg = dict(
    max_iters=150, val_interval=150, weights=dict(cls=15, det=10, seg=5))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, end=30, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        begin=30,
        end=150,
        eta_min_ratio=1e-3,
        by_epoch=False)
]
default_hooks = dict(checkpoint=dict(interval=150))

del parts, join_tasks
