# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Few-shot task of the demo: find and read one to four digits, 64 pictures.

    python tools/train.py configs/demo/downstream_digits_det.py

Needs the zoo that the midstream configs of this folder leave, or `make demo`,
which also trains the baselines.
Measured on two CPU cores, one seed, 64 pictures: AP50 on 64 pictures 0.313
frozen trunk, 0.399 best single: digit-masks, 0.371 uniform gates, 0.368
trained from there, 0.389 score-started gates, 0.401 trained from there (commit
80feed7); three seeds in README.md.
Weights per layer and branch over frozen modules are the paper's; that they
need not sum to one (LinearMoE), their start from the modules' scores, the
warmed head and all sizes are ours.
"""
_base_ = [
    '../_base_/models/demo_det.py',
    '../_base_/datasets/demo/digits_det_fewshot.py',
    '../_base_/schedules/demo_downstream.py',
    '../_base_/default_runtime.py',
]

model = dict(
    bbox_head=dict(num_classes=10),
    backbone=dict(
        zoo='work_dirs/demo/zoo',
        modules=['trees', 'solar', 'digit-masks', 'digit-classes'],
        fusion=dict(type='vim_mm.LinearMoE', tasks=['digits-det'])))

custom_hooks = [
    dict(type='vim_mm.ScoreGatesHook'),
    dict(
        type='vim_mm.WarmHeadHook',
        epochs=20,
        optimizer=dict(type='AdamW', lr=3e-3, weight_decay=1e-4)),
    dict(type='vim_mm.GateLogHook')
]
