# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""ImageNet-1k alone: DaViT-T and a linear head.

Command, on 8 GPUs:

    tools/dist_train.sh configs/mtht/single/davit-t_imagenet1k.py 8 --amp

Expected result: not measured here; DaViT's authors give 82.8 % top-1 for their
recipe of 300 epochs (README of their repository), which mmpretrain's schedule
follows. Hardware and time: not measured.

From MTHT's code: augmentation, label smoothing, Mixup and CutMix, 64 images a
GPU, evaluation at 256/224. Schedule and optimizer: mmpretrain's for DaViT. The
joint configs of the folder above read data, head and metric from here.
"""
_base_ = 'mmpretrain::davit/davit-tiny_4xb256_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True, type='vim_mm.MoEDaViT', arch='tiny', moe=None),
    head=dict(in_channels='auto'))

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='ResizeEdge',
        scale=256,
        edge='short',
        backend='pillow',
        interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=64)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
