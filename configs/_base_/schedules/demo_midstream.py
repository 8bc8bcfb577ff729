# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Minutes on two cores: the head is warmed on cached trunk features, then
# module and head learn together for a few epochs. A config sets `max_epochs`
# of the loop and `total_steps` of the schedule to the same number.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=6, val_interval=100)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4),
    clip_grad=dict(max_norm=1.))
param_scheduler = dict(
    type='OneCycleLR',
    eta_max=1e-3,
    total_steps=6,
    pct_start=0.15,
    by_epoch=True,
    convert_to_iter_based=True)
