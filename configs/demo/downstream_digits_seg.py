# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Few-shot task of the demo: segment the digit on a photograph, 100 images.

    python tools/train.py configs/demo/downstream_digits_seg.py

Needs the zoo that the midstream configs of this folder leave. `make demo`
makes it, and trains the baselines too.
Expect, on two CPU cores, 30 s and 1.2 GB; an mIoU of about 0.31, against 0.18
with the frozen trunk and 0.25 with uniform gates. Three seeds: README.md.
Weights per layer and branch over frozen modules are the paper's. Ours: they
need not sum to one (LinearMoE), start where modules help on held-out images
and are kept if they do; the warmed head and all sizes.
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
    dict(type='vim_mm.BetterGatesHook'),
    dict(type='vim_mm.GateLogHook')
]

# to save minutes: the first of the images
train_dataloader = dict(dataset=dict(indices=100))
test_dataloader = dict(dataset=dict(indices=150))
