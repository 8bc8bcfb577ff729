# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# MTHT's schedule, from the configs of its code: 60 "epochs" of 4,000 steps,
# LAMB under one cycle. mmcv's defaults hold: 30 % warm-up from 1.6e-4, cosine
# to 1.6e-8. `total_steps` and `eta_max` must stay given: without them mmengine
# trains at a rate of zero, or at its start for ever.
_base_ = '../default_runtime.py'

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='mmpretrain.Lamb', lr=0.004, weight_decay=0.05),
    clip_grad=dict(max_norm=0.1))
param_scheduler = dict(
    type='OneCycleLR', eta_max=0.004, total_steps=240000, by_epoch=False)

train_cfg = dict(
    type='vim_mm.MultiTaskTrainLoop',
    max_iters=240000,
    val_interval=4000,
    weights=dict(cls=15, det=10, seg=5))
val_cfg = dict(type='vim_mm.MultiTaskValLoop')
test_cfg = dict(type='vim_mm.MultiTaskTestLoop')

default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=4000, max_keep_ckpts=2))
log_processor = dict(by_epoch=False)
