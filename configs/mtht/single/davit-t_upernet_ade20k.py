# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""ADE20K alone: DaViT-T and UPerNet.

Command, on 8 GPUs:

    tools/dist_train.sh configs/mtht/single/davit-t_upernet_ade20k.py 8 --amp

Expected result: not measured here; DaViT's authors give 46.3 mIoU for 160k
steps from ImageNet weights (README of their repository); to start from such a
file set ``model.backbone.init_cfg``. Hardware and time: not measured.

From MTHT's code: UPerNet of 512 channels with pools 1, 2, 3, 6 and an
auxiliary FCN on the third map at 0.4, crops of 512, 2 images a GPU, whole
images in evaluation. Schedule: mmseg's 160k with AdamW. The joint configs of
the folder above read data, heads and metric from here.
"""
_base_ = [
    'mmseg::_base_/models/upernet_r50.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/schedules/schedule_160k.py',
    'mmseg::_base_/default_runtime.py',
]

model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        _delete_=True, type='vim_mm.MoEDaViT', arch='tiny', moe=None),
    decode_head=dict(in_channels='auto', num_classes=150),
    auxiliary_head=dict(in_channels='auto', num_classes=150))
train_dataloader = dict(batch_size=2)

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-5, weight_decay=0.01),
    clip_grad=None)
