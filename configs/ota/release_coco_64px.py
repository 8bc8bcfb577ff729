# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
_base_ = '../_base_/default_runtime.py'

data_root = '{{$VIM_MM_DATA:data}}/coco/'
size = 64
train_pipeline = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(
        type='mmpretrain.RandomResizedCrop',
        scale=size,
        crop_ratio_range=(0.1, 1.)),
    dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='mmpretrain.PackInputs')
]
test_pipeline = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(type='mmpretrain.ResizeEdge', scale=size, edge='short'),
    dict(type='mmpretrain.CenterCrop', crop_size=size),
    dict(type='mmpretrain.PackInputs')
]
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='mmpretrain.CustomDataset',
        data_root=data_root,
        data_prefix='train2017',
        with_label=False,
        pipeline=train_pipeline))

model = dict(type='vim_mm.VQAutoEncoder', codebook_size=512, downsample=4)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=600)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.))
param_scheduler = dict(type='OneCycleLR', eta_max=1e-3, total_steps=600, by_epoch=False)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=600))
log_processor = dict(by_epoch=False)
