# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Digits on photographs, ten classes. Written by
# `python tools/dataset_converters/digits_on_photographs.py`. No flips: they
# would turn one digit into another.
dataset_type = 'mmpretrain.CustomDataset'
data_root = '{{$VIM_MM_DEMO_DATA:data/demo}}/digits_on_photographs/'
classes = tuple('0123456789')

data_preprocessor = dict(
    type='mmpretrain.ClsDataPreprocessor',
    num_classes=10,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)
train_pipeline = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(type='mmpretrain.PackInputs')
]
test_pipeline = train_pipeline

train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='midstream/cls.txt',
        data_prefix='midstream/img',
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
        ann_file='midstream_val/cls.txt',
        data_prefix='midstream_val/img',
        classes=classes,
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='mmpretrain.Accuracy', topk=(1, ))
test_evaluator = val_evaluator
