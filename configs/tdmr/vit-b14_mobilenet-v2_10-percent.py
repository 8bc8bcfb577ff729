# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""TDMR at full size: a tenth of a data set, ViT-B/14 to MobileNetV2.

    python tools/train.py configs/tdmr/vit-b14_mobilenet-v2_10-percent.py \
        --cfg-options \
        train_dataloader.dataset.dataset.dataset.data_root=DATA \
        val_dataloader.dataset.data_root=DATA \
        test_dataloader.dataset.data_root=DATA \
        model.student.head.num_classes=N

DATA holds the folders ``train`` and ``val`` of a folder per class. Four views
of each image at 224 px; with 25 epochs a view the student sees each image 100
times. The paper's networks, data sets and settings are not public: all of
these are ours, after what its abstract says (frozen foundation model, limited
target data, a target of another architecture).

Expected result: not measured.
"""
_base_ = [
    '../_base_/datasets/class_folders.py',
    '../_base_/trunks/mobilenet_v2.py',
    '../_base_/default_runtime.py',
]

data_preprocessor = dict(
    _delete_=True,
    type='mmpretrain.ClsDataPreprocessor',
    to_rgb=True,
    **_base_.trunk_normalization)
backbone = _base_.trunk
backbone.update(out_indices=(7, ))
model = dict(
    type='vim_mm.TDMRDistiller',
    student=dict(
        type='mmpretrain.ImageClassifier',
        backbone=backbone,
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(
            type='mmpretrain.LinearClsHead',
            num_classes=200,
            in_channels=1280,
            loss=dict(type='mmpretrain.CrossEntropyLoss'))),
    foundations=dict(
        vit=dict(config='{{fileDirname}}/foundations/dinov2_vit-b14.py')),
    proxy=dict(channels=512))

train_dataloader = dict(
    batch_size=64,
    dataset=dict(
        _delete_=True,
        type='vim_mm.Views',
        views=4,
        dataset=dict(
            type='vim_mm.FewShot',
            share=0.1,
            seed=0,
            dataset=_base_.train_dataloader.dataset)))
custom_hooks = [
    dict(type='vim_mm.CostHook'),
    dict(type='vim_mm.ProxyHook', epochs=100, store='work_dirs/tdmr_store')
]

max_epochs = 25
train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=5)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4))
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        convert_to_iter_based=True)
]
