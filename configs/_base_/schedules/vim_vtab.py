# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Borrowed from Convpass on VTAB-1k, the nearest recipe that is documented:
# AdamW 1e-3, weight decay 1e-4, 100 epochs, 10 of them warm-up from 1e-6,
# cosine to 1e-5. Left out of that recipe: drop path 0.1, and per task an
# output scale and Xavier instead of identity convolutions. Ours: longer steps
# for the gates, and no validation; the model after the last epoch is the
# result.
max_epochs = 100
warmup_epochs = 10
train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=100)
val_cfg = None
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4),
    paramwise_cfg=dict(
        custom_keys={'backbone.fusion': dict(lr_mult=30., decay_mult=0.)}))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=warmup_epochs,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=warmup_epochs,
        end=max_epochs,
        convert_to_iter_based=True)
]
