# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# What ViM's release sees of an image, for classification: squashed to 224 x
# 224 from any shape (PIL's bilinear filter), ImageNet's mean and deviation
# and not CLIP's. Data: a folder per class under `data_root`. The release
# predicts only, and so do these.
dataset_type = 'mmpretrain.CustomDataset'
data_root = 'data/pictures'

data_preprocessor = dict(
    type='mmpretrain.ClsDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)
test_pipeline = [
    dict(type='mmpretrain.LoadImageFromFile', imdecode_backend='pillow'),
    dict(
        type='mmpretrain.Resize',
        scale=(224, 224),
        backend='pillow',
        interpolation='bilinear'),
    dict(type='mmpretrain.PackInputs')
]

test_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        with_label=True,
        pipeline=test_pipeline))
test_evaluator = dict(type='mmpretrain.Accuracy', topk=(1, ))
