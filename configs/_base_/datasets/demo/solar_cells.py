# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Mono-crystalline solar cells, two classes. Written by
# `python tools/dataset_converters/solar_cells.py`.
dataset_type = 'mmpretrain.CustomDataset'
data_root = '{{$VIM_MM_DEMO_DATA:data/demo}}/solar_cells/'
classes = ('defective', 'functional')

data_preprocessor = dict(
    type='mmpretrain.ClsDataPreprocessor',
    num_classes=2,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)
train_pipeline = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(type='mmpretrain.Resize', scale=(98, 98)),
    dict(
        type='mmpretrain.RandomFlip',
        prob=[0.25, 0.25, 0.25],
        direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='mmpretrain.PackInputs')
]
test_pipeline = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(type='mmpretrain.Resize', scale=(98, 98)),
    dict(type='mmpretrain.PackInputs')
]

train_dataloader = dict(
    batch_size=16,
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

# average precision needs no threshold, which suits unequal classes
val_evaluator = [
    dict(type='mmpretrain.Accuracy', topk=(1, )),
    dict(type='mmpretrain.AveragePrecision'),
    dict(type='mmpretrain.SingleLabelMetric')
]
test_evaluator = val_evaluator
