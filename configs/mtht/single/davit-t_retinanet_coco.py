# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""COCO boxes alone: DaViT-T, FPN and RetinaNet.

Command, on 8 GPUs:

    tools/dist_train.sh configs/mtht/single/davit-t_retinanet_coco.py 8 --amp

Expected result: not measured here; DaViT's authors give 44.0 AP for their 1x
schedule from ImageNet weights (README of their repository); to start from
such a file set ``model.backbone.init_cfg``. Hardware and time: not measured.

From MTHT's code: FPN from the second map on, five levels, RetinaNet with focal
and L1 loss, multi-scale training with the crop branch of DETR, 2 images a GPU.
Schedule: mmdet's 1x. The joint configs of the folder above read data, neck,
head and metric from here.
"""
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True, type='vim_mm.MoEDaViT', arch='tiny', moe=None),
    neck=dict(in_channels='auto'))

short_sides = [(side, 1333) for side in range(480, 801, 32)]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',
        transforms=[[
            dict(
                type='RandomChoiceResize',
                scales=short_sides,
                keep_ratio=True)
        ],
                    [
                        dict(
                            type='RandomChoiceResize',
                            scales=[(400, 1333), (500, 1333), (600, 1333)],
                            keep_ratio=True),
                        dict(
                            type='RandomCrop',
                            crop_type='absolute_range',
                            crop_size=(384, 600),
                            allow_negative_crop=True),
                        dict(
                            type='RandomChoiceResize',
                            scales=short_sides,
                            keep_ratio=True)
                    ]]),
    dict(type='PackDetInputs')
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05))
