# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""IRF on a tenth of a data set's training images; ResNet-50 of ImageNet-1k.

    python tools/train.py configs/ota/irf_10-percent_resnet50.py \\
        --cfg-options model.backbone.init_cfg.checkpoint=RESNET50 \\
        model.head.num_classes=100 \\
        train_dataloader.dataset.dataset.data_root=DATA \\
        val_dataloader.dataset.data_root=DATA

OTA's own networks, data and schedule are not known. A tenth of the images per
class is the protocol of the same team's INTERN. The order is ours, after what
is told of INTERN: the head alone on re-represented images, the backbone
frozen; then everything on the originals with a small rate. Not measured.
"""
_base_ = [
    '../_base_/datasets/class_folders.py',
    '../_base_/schedules/irf_small.py',
]

release = 'work_dirs/ota/release_imagenet1k'
hooks = _base_.custom_hooks
# statistics of a tenth of the images keep their momentum
custom_hooks = [dict(hooks[0], release=release, scale=1.)]

data_preprocessor = dict(type='mmpretrain.ClsDataPreprocessor')
train_set = _base_.train_dataloader.dataset
train_dataloader = dict(
    batch_size=64,
    dataset=dict(
        _delete_=True,
        type='vim_mm.FewShot',
        dataset=train_set,
        share=0.1,
        seed=0))
val_dataloader = dict(batch_size=64)
test_dataloader = val_dataloader

model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(
        type='mmpretrain.ResNet',
        depth=50,
        init_cfg=dict(
            type='Pretrained', checkpoint='resnet50.pth', prefix='backbone')),
    neck=dict(type='vim_mm.StandardizedPooling', in_channels='auto'),
    head=dict(
        type='mmpretrain.LinearClsHead',
        num_classes=100,
        in_channels='auto',
        loss=dict(type='mmpretrain.CrossEntropyLoss')))
