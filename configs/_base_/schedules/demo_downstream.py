# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Few-shot fusion in seconds: gates start from each module's score, the head is
# warmed on cached features, then gates and head learn together.
max_epochs = 1
train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=100)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# the head is warm and only follows; gates are few and take long steps
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-4),
    paramwise_cfg=dict(
        custom_keys={'backbone.fusion': dict(lr_mult=150., decay_mult=0.)}),
    clip_grad=dict(max_norm=1.))
param_scheduler = dict(
    type='CosineAnnealingLR',
    T_max=max_epochs,
    by_epoch=True,
    convert_to_iter_based=True)
