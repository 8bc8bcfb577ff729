# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Fine-tuning of a whole ViT-S on two cores: the backbone slowly, heads, which
# start warm, and routers faster. `max_iters` of the loop and `end` of the
# schedule are the same number.
_base_ = '../default_runtime.py'

max_iters = 200
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={
            # at ten times this rate a few steps undo what the trunk knows
            'backbone': dict(lr_mult=0.1),
            # longer names are looked up first
            '.routers.': dict(lr_mult=5.)
        }),
    clip_grad=dict(max_norm=1.))
# no OneCycleLR: its one `eta_max` overwrites the rates of all groups
param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, end=40, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        begin=40,
        end=max_iters,
        eta_min_ratio=1e-3,
        by_epoch=False)
]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(by_epoch=False, interval=max_iters))
log_processor = dict(by_epoch=False, window_size=20)
