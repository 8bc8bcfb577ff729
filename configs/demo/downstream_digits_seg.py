# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Few-shot task of the demo: segment the digit on a photograph, 100 pictures.

    python tools/train.py configs/demo/downstream_digits_seg.py

Needs the zoo that the midstream configs of this folder leave, or `make demo`,
which also trains the baselines.
Measured on two CPU cores, one seed, 100 pictures: mIoU on 150 pictures 0.180
frozen trunk, 0.293 best single: digit-masks, 0.256 uniform gates, 0.259
trained from there, 0.287 score-started gates, 0.283 trained from there (commit
80feed7); three seeds in README.md.
Weights per layer and branch over frozen modules are the paper's; that they
need not sum to one (LinearMoE), their start from the modules' scores, the
warmed head and all sizes are ours.
"""
_base_ = [
    '../_base_/models/demo_seg.py',
    '../_base_/datasets/demo/digits_seg_fewshot.py',
    '../_base_/schedules/demo_downstream.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        zoo='work_dirs/demo/zoo',
        modules=['trees', 'solar', 'digit-masks', 'digit-classes'],
        fusion=dict(type='vim_mm.LinearMoE', tasks=['digits-seg'])))

custom_hooks = [
    dict(type='vim_mm.ScoreGatesHook'),
    dict(
        type='vim_mm.WarmHeadHook',
        epochs=40,
        optimizer=dict(type='AdamW', lr=3e-3, weight_decay=1e-4)),
    dict(type='vim_mm.GateLogHook')
]

# minutes matter here: the first of the pictures
train_dataloader = dict(dataset=dict(indices=100))
test_dataloader = dict(dataset=dict(indices=150))
