# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Driving scenes in eleven classes: a MobileNetV2 segmentor learns of a ViT-S.

    python tools/train.py configs/mtht/real_single/camvid_seg.py
    python tools/train.py configs/kd/camvid_mobilenet-v2.py

Logits at every place, and features of the last level, where tokens of
patches and a map of another size meet.
Expected result: not measured.
"""
_base_ = [
    '../_base_/trunks/mobilenet_v2.py',
    '../_base_/datasets/real/camvid.py',
    '../_base_/schedules/student_demo.py',
]
default_scope = 'mmseg'  # the student's own

model = dict(
    type='vim_mm.Distiller',
    student=dict(
        type='mmseg.EncoderDecoder',
        backbone=_base_.trunk,
        decode_head=dict(
            type='mmseg.SegformerHead',
            in_channels=[24, 32, 96, 1280],
            in_index=[0, 1, 2, 3],
            channels=64,
            num_classes=11,
            norm_cfg=dict(type='BN'),
            align_corners=False,
            loss_decode=dict(type='mmseg.CrossEntropyLoss')),
        test_cfg=dict(mode='whole')),
    teacher=dict(
        config='configs/mtht/real_single/camvid_seg.py',
        checkpoint='work_dirs/camvid_seg/iter_200.pth'),
    criteria={
        ('logits', 'logits'): dict(type='vim_mm.LogitsKL', tau=2.),
        ('backbone[3]', 'backbone[2]'): dict(type='vim_mm.CosineSmoothL1')
    },
    # a multiple of the teacher's patches
    probe_size=140)

train_dataloader = dict(batch_size=8)
max_epochs = 10
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = dict(T_max=max_epochs)
default_hooks = dict(checkpoint=dict(interval=max_epochs))
