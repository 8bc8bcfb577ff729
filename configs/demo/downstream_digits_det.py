# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Few-shot task of the demo: detect and read one to four digits, 64 images.

    python tools/train.py configs/demo/downstream_digits_det.py

Needs the zoo that the midstream configs of this folder leave. `make demo`
makes it, and trains the baselines too.
Expect, on two CPU cores, one minute and 1.4 GB; an AP50 of about 0.40, against
0.25 with the frozen trunk and 0.30 with uniform gates. Three seeds: README.md.
Weights per layer and branch over frozen modules are the paper's. Ours: they
need not sum to one (LinearMoE), start where modules help on held-out images
and are kept if they do; the warmed head and all sizes.
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
    dict(type='vim_mm.BetterGatesHook'),
    dict(type='vim_mm.GateLogHook')
]
