# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Few-shot task of the demo: classify the digit, 20 images per class.

    python tools/train.py configs/demo/downstream_digits_cls.py

Needs the zoo that the midstream configs of this folder leave. `make demo`
makes it, and trains the baselines too.
Expect, on two CPU cores, 40 s and 1.2 GB; an accuracy of about 0.61, against
0.23 with the frozen trunk and 0.45 with uniform gates. Three seeds: README.md.
Weights per layer and branch over frozen modules are the paper's. Ours: they
need not sum to one (LinearMoE), start where modules help on held-out images
and are kept if they do; the warmed head and all sizes.
"""
_base_ = [
    '../_base_/models/demo_cls.py',
    '../_base_/datasets/demo/digits_cls_fewshot.py',
    '../_base_/schedules/demo_downstream.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        zoo='work_dirs/demo/zoo',
        modules=['trees', 'solar', 'digit-masks', 'digit-classes'],
        fusion=dict(type='vim_mm.LinearMoE', tasks=['digits-cls'])))

custom_hooks = [
    dict(type='vim_mm.ScoreGatesHook', max_pictures=100),
    dict(type='vim_mm.WarmHeadHook', epochs=40),
    dict(type='vim_mm.BetterGatesHook'),
    dict(type='vim_mm.GateLogHook')
]

# to save minutes: the first of the test images
test_dataloader = dict(dataset=dict(indices=200))
