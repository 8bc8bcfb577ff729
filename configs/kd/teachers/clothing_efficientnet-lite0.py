# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Clothes in ten classes, 40 images a class: EfficientNet-Lite0, a teacher.

    python tools/train.py configs/kd/teachers/clothing_efficientnet-lite0.py

Expected result: top-1 of 79.8 on 341 test images (one seed, commit e3b558d),
in 275 s of one CPU core.
"""
_base_ = [
    '../../_base_/trunks/efficientnet_lite0.py',
    '../../_base_/datasets/real/clothing.py',
    '../../_base_/schedules/student_demo.py',
]
default_scope = 'mmpretrain'

trunk = _base_.trunk
trunk.update(out_indices=(4, ))
data_preprocessor = dict(**_base_.trunk_normalization)
model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=trunk,
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(
        type='mmpretrain.LinearClsHead', num_classes=10, in_channels=320))

train_dataloader = dict(
    batch_size=32,
    dataset=dict(
        _delete_=True,
        type='vim_mm.FewShot',
        per_class=40,
        dataset=_base_.train_dataloader.dataset))
