# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# IRF on few images. First the head alone, on cached features of four views of
# each re-represented image, the backbone frozen and in eval mode; then all
# parameters, slowly, on the original images. Lengths and rates are ours.
_base_ = '../default_runtime.py'

release = 'work_dirs/ota/release'
custom_hooks = [
    dict(
        type='vim_mm.WarmHeadHook',
        release=release,
        scale=2.,
        epochs=40,
        views=4,
        evaluate=True),
    dict(type='vim_mm.NormEvalHook')
]

max_epochs = 10
train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-5, weight_decay=0.05),
    clip_grad=dict(max_norm=1.))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.1,
        end=2,
        by_epoch=True,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        begin=2,
        T_max=max_epochs - 2,
        end=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True)
]
default_hooks = dict(checkpoint=dict(interval=max_epochs))
