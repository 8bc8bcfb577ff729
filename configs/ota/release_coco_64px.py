# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""An upstream release out of photographs, at 64 px: OTA's provider side.

    python tools/release.py publish configs/ota/release_coco_64px.py \\
        --out work_dirs/ota/release

Expect 106 s of CPU time, all 512 codes in use, a membership AUC of 0.51; more
in README.md. Sizes and schedule are ours.
"""
_base_ = '../_base_/default_runtime.py'

# COCO 2017: 128 photographs to learn from, and 128 others
data_root = '{{$VIM_MM_DATA:data}}/coco/'
size = 64
load = dict(type='mmpretrain.LoadImageFromFile')
pack = dict(type='mmpretrain.PackInputs')
train_pipeline = [
    load,
    dict(
        type='mmpretrain.RandomResizedCrop',
        scale=size,
        crop_ratio_range=(0.1, 1.)),
    dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'),
    pack,
]
test_pipeline = [
    load,
    dict(type='mmpretrain.ResizeEdge', scale=size, edge='short'),
    dict(type='mmpretrain.CenterCrop', crop_size=size),
    pack,
]
dataset = dict(
    type='mmpretrain.CustomDataset', data_root=data_root, with_label=False)
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **dataset, data_prefix='train2017', pipeline=train_pipeline))
# read after training, for the leak report
held_out_dataloader = dict(
    dataset=dict(**dataset, data_prefix='val2017', pipeline=test_pipeline))

release_card = dict(
    name='coco-64px',
    data='128 photographs of COCO 2017 (train), crops of 64 px',
    licence='CC BY 4.0 (annotations); photographs: Flickr, Creative Commons')

model = dict(
    type='vim_mm.VQAutoEncoder',
    codebook_size=512,
    code_dims=64,
    channels=64,
    downsample=4)

max_iters = 1000
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.))
param_scheduler = dict(
    type='OneCycleLR', eta_max=1e-3, total_steps=max_iters, by_epoch=False)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=max_iters))
log_processor = dict(by_epoch=False)
