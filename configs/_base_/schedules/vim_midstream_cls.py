# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# AdamW at 1e-3 for 1,024 images, weight decay 1e-4, warmed up and cosine,
# after Convpass on VTAB-1k; the number of epochs is each config's own.
max_epochs = 10
train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4),
    clip_grad=dict(max_norm=1.))
param_scheduler = [
    dict(
        type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=1000),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        T_max=max_epochs,
        convert_to_iter_based=True)
]

auto_scale_lr = dict(enable=False, base_batch_size=1024)
