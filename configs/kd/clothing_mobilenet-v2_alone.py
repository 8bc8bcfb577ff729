# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Clothes in ten classes, 40 images a class: MobileNetV2 without a teacher.

    python tools/train.py configs/kd/clothing_mobilenet-v2_alone.py

The same student, images and steps as clothing_mobilenet-v2.py, to compare
with.
Expected result: top-1 of 79.5 on 341 test images (one seed, commit e3b558d),
in 226 s of one CPU core.
"""
_base_ = [
    '../_base_/trunks/mobilenet_v2.py',
    '../_base_/datasets/real/clothing.py',
    '../_base_/schedules/student_demo.py',
]
default_scope = 'mmpretrain'  # the student's own

trunk = _base_.trunk
trunk.update(out_indices=(7, ))
model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=trunk,
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(
        type='mmpretrain.LinearClsHead', num_classes=10, in_channels=1280))

train_dataloader = dict(
    batch_size=32,
    dataset=dict(
        _delete_=True,
        type='vim_mm.FewShot',
        per_class=40,
        dataset=_base_.train_dataloader.dataset))
