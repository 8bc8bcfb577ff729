# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# 80,000 iterations with AdamW; the runtime that counts iterations included.
_base_ = '../default_runtime.py'

max_iters = 80000
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=max_iters, val_interval=8000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# modules take longer steps than heads, gates (in a softmax) longer ones still
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={
            'backbone.bank': dict(lr_mult=5., decay_mult=0.),
            'backbone.fusion': dict(lr_mult=50., decay_mult=0.)
        },
        norm_decay_mult=0.),
    clip_grad=dict(max_norm=1.))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(
        type='PolyLR',
        eta_min=0.,
        power=0.9,
        begin=500,
        end=max_iters,
        by_epoch=False)
]

default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=8000))
log_processor = dict(by_epoch=False)
auto_scale_lr = dict(enable=False, base_batch_size=16)
