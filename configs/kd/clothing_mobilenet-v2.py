# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Clothes in ten classes, 40 images a class: MobileNetV2 learns of a teacher.

    python tools/train.py configs/kd/teachers/clothing_efficientnet-lite0.py
    python tools/train.py configs/kd/clothing_mobilenet-v2.py

The student's own loss counts a tenth, logits at a temperature of 4 the rest.
Expected result: not measured.
"""
_base_ = './clothing_mobilenet-v2_alone.py'

model = dict(
    _delete_=True,
    type='vim_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        config='configs/kd/teachers/clothing_efficientnet-lite0.py',
        checkpoint='work_dirs/clothing_efficientnet-lite0/epoch_30.pth'),
    own_weight=0.1,
    criteria={
        ('logits', 'logits'): dict(type='vim_mm.LogitsKL', tau=4., weight=0.9)
    },
    probe_size=112)
