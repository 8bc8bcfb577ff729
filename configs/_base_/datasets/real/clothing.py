# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Clothes as people photograph them, ten classes, a folder each, at 112 px.
# From the repository alexeygrigorev/clothing-dataset-small on GitHub, CC0;
# short sides reduced to 224 px, 1,817 training images (at most 200 a class)
# and 341 for validation.
dataset_type = 'mmpretrain.CustomDataset'
data_root = '{{$VIM_MM_DATA:data}}/clothing/'
classes = ('dress', 'hat', 'longsleeve', 'outwear', 'pants', 'shirt', 'shoes',
           'shorts', 'skirt', 't-shirt')
size = 112

data_preprocessor = dict(
    type='mmpretrain.ClsDataPreprocessor',
    num_classes=10,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)
train_pipeline = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(
        type='mmpretrain.RandomResizedCrop',
        scale=size,
        crop_ratio_range=(0.5, 1.)),
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
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix='train',
        classes=classes,
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix='val',
        classes=classes,
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='mmpretrain.Accuracy', topk=(1, ))
test_evaluator = val_evaluator
