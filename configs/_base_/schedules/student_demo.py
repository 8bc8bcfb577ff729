# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Minutes on two cores: a small network that starts from ImageNet. A config
# that changes `max_epochs` changes `T_max` with it.
_base_ = '../default_runtime.py'

max_epochs = 30
train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=5.))
param_scheduler = dict(
    type='CosineAnnealingLR',
    T_max=max_epochs,
    eta_min_ratio=1e-2,
    by_epoch=True,
    convert_to_iter_based=True)
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=max_epochs))
log_processor = dict(window_size=10)
