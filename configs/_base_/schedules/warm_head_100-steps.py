# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Students and teachers of `make demo-student`: the head first, on cached
# features, then 100 steps of all. All numbers are ours.
_base_ = '../default_runtime.py'

warm_head = dict(
    type='vim_mm.WarmHeadHook', epochs=40, views=4, evaluate=True)
custom_hooks = [warm_head]

max_iters = 100
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=5.))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=10, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        begin=10,
        T_max=max_iters - 10,
        end=max_iters,
        by_epoch=False)
]
default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(by_epoch=False, interval=max_iters, max_keep_ckpts=1))
log_processor = dict(by_epoch=False, window_size=10)
