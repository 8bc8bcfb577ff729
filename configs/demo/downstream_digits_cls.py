# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Few-shot task of the demo: name the digit, 20 pictures a class.

    python tools/train.py configs/demo/downstream_digits_cls.py

Needs the zoo that the midstream configs of this folder leave, or `make demo`,
which also trains the baselines.
Measured on two CPU cores, one seed, 200 pictures: accuracy on 200 pictures
0.225 frozen trunk, 0.570 best single: digit-masks, 0.450 uniform gates, 0.470
trained from there, 0.605 score-started gates, 0.635 trained from there (commit
80feed7); three seeds in README.md.
Weights per layer and branch over frozen modules are the paper's; that they
need not sum to one (LinearMoE), their start from the modules' scores, the
warmed head and all sizes are ours.
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
    dict(type='vim_mm.GateLogHook')
]

# minutes matter here: the first of the test pictures
test_dataloader = dict(dataset=dict(indices=200))
