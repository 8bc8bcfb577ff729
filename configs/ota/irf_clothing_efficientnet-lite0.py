# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""IRF: clothes in ten classes, ten images each; EfficientNet-Lite0.

    python tools/release.py publish configs/ota/release_coco_64px.py \\
        --out work_dirs/ota/release
    python tools/train.py configs/ota/irf_clothing_efficientnet-lite0.py

README.md has what was measured.
"""
_base_ = [
    '../_base_/trunks/efficientnet_lite0.py',
    '../_base_/datasets/real/clothing.py',
    '../_base_/schedules/irf_small.py',
]

data_preprocessor = _base_.trunk_normalization
train_set = _base_.train_dataloader.dataset
train_dataloader = dict(
    batch_size=16,
    dataset=dict(
        _delete_=True,
        type='vim_mm.FewShot',
        dataset=train_set,
        per_class=10,
        seed=0))

trunk = _base_.trunk
trunk.update(out_indices=(3, 4))
model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=trunk,
    neck=dict(type='vim_mm.StandardizedPooling', in_channels='auto'),
    head=dict(
        type='mmpretrain.LinearClsHead',
        num_classes=10,
        in_channels='auto',
        loss=dict(type='mmpretrain.CrossEntropyLoss'),
        init_cfg=dict(type='Constant', layer='Linear', val=0.)))
