# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""IRF teacher of `make demo-student`: solar cells, 40 images a class.

    python tools/release.py publish configs/ota/demo_release.py \\
        --out work_dirs/demo_student/release/published
    python tools/train.py configs/ota/demo_teacher_solar-cells.py
    python tools/generate.py configs/ota/demo_teacher_solar-cells.py \\
        --teacher work_dirs/demo_teacher_solar-cells/iter_100.pth \\
        --out work_dirs/ota/solar-cells_generated

EfficientNet-Lite0 of ImageNet: its head learns on re-represented images, then
all of it on the originals; then it makes an image of each of its 80 (DIGG). A
minute each on two CPU cores. Without ``release`` the hook makes it LP-FT, the
control. All numbers are ours.
"""
_base_ = [
    '../_base_/trunks/efficientnet_lite0.py',
    '../_base_/datasets/demo/solar_cells_fewshot.py',
    '../_base_/schedules/warm_head_100-steps.py',
]

data_preprocessor = _base_.trunk_normalization
backbone = _base_.trunk
backbone.update(out_indices=(4, ))
model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=backbone,
    neck=dict(type='vim_mm.StandardizedPooling', in_channels='auto'),
    head=dict(
        type='mmpretrain.LinearClsHead',
        num_classes=2,
        in_channels='auto',
        loss=dict(type='mmpretrain.CrossEntropyLoss'),
        init_cfg=dict(type='Constant', layer='Linear', val=0.)))

warm_head = _base_.warm_head
warm_head.update(
    release='work_dirs/demo_student/release/published', scale=2.)
# statistics of a few images are worse than those it comes with
custom_hooks = [warm_head, dict(type='vim_mm.NormEvalHook')]

generate = dict(
    batch_size=20,
    generator=dict(
        type='vim_mm.GuidedGenerator',
        iterations=60,
        noise=0.02,
        layers=r'backbone\.timm_model\.blocks\.(1|3|5)'))
