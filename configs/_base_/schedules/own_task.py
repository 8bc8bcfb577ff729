# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Module and head of one's own task learn together for some minutes, after
# WarmHeadHook. A child sets `max_iters` of the loop and `total_steps` of the
# schedule to the same number, and how often to validate and to save.
_base_ = '../default_runtime.py'

train_cfg = dict(type='IterBasedTrainLoop')
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4),
    clip_grad=dict(max_norm=1.))
param_scheduler = dict(
    type='OneCycleLR', eta_max=1e-3, pct_start=0.15, by_epoch=False)

default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(by_epoch=False))
log_processor = dict(by_epoch=False)
