# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""OTA student of `make demo-student`: MobileNetV2 learns solar cells.

    python tools/train.py configs/ota/demo_student_solar-cells.py

It learns from the teacher of ./demo_teacher_solar-cells.py, on its 80 images,
on their copies out of the upstream release and on generated ones, half of
each batch originals; labels count for these alone. A minute on two CPU cores.
All numbers are ours.
"""
_base_ = [
    '../_base_/models/demo_student.py',
    '../_base_/datasets/demo/solar_cells_fewshot.py',
    '../_base_/schedules/warm_head_100-steps.py',
]
work = 'work_dirs/demo_student'

model = dict(
    type='vim_mm.Distiller',
    student=_base_.student,
    teacher=dict(
        config='{{fileDirname}}/demo_teacher_solar-cells.py',
        checkpoint=f'{work}/teacher/IRF/iter_100.pth'),
    own_weight=0.1,
    criteria={
        ('logits', 'logits'): dict(type='vim_mm.LogitsKL', tau=4., weight=0.9)
    },
    probe_size=98)

few = _base_.train_dataloader.dataset
folder = dict(
    type='mmpretrain.CustomDataset',
    data_prefix='',
    classes=_base_.classes,
    pipeline=_base_.train_pipeline)
copies = dict(
    type='vim_mm.SoftOnly',
    manifest=f'{work}/release/copies/manifest.json',
    dataset=dict(folder, data_root=f'{work}/release/copies'))
generated = dict(
    type='vim_mm.SoftOnly',
    manifest=f'{work}/generation/solar-cells/manifest.json',
    dataset=dict(folder, data_root=f'{work}/generation/solar-cells/images'))
train_dataloader = dict(
    sampler=dict(
        _delete_=True,
        type='mmdet.MultiSourceSampler',
        batch_size=32,
        source_ratio=[2, 1, 1]),
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[few, copies, generated]))
