# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""IRF: clothes in ten classes, ten images each; MobileNetV2.

    python tools/train.py configs/ota/irf_clothing_mobilenet-v2.py

Needs a release: irf_clothing_efficientnet-lite0.py says how to make one. Not
measured.
"""
_base_ = './irf_clothing_efficientnet-lite0.py'

mobilenet = dict(
    _delete_=True,
    type='mmpretrain.MobileNetV2',
    out_indices=(4, 7),
    init_cfg=dict(
        type='Pretrained',
        checkpoint='{{$VIM_MM_WEIGHTS:weights}}/mobilenet_v2.safetensors'))
model = dict(backbone=mobilenet)
data_preprocessor = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
