# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Segmentor of ViM's release: raw maps of blocks 3, 5, 7 and 11 (0-based) at
# full width, a pyramid of transposed convolutions, FPN and Semantic FPN.
_base_ = '../trunks/clip_vit-b16.py'

model = dict(
    type='mmseg.EncoderDecoder',
    backbone=dict(type='vim_mm.ViMBackbone', trunk=_base_.trunk),
    neck=dict(
        type='vim_mm.ViMFusionNeck',
        in_channels=(768, 768, 768, 768),
        scales=(4, 2, 1, 0.5),
        norm_cfg=dict(type='BN'),
        inner_neck=dict(
            type='mmseg.FPN',
            in_channels=[768, 768, 768, 768],
            out_channels=256,
            num_outs=4)),
    decode_head=dict(
        type='mmseg.FPNHead',
        in_channels=[256, 256, 256, 256],
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=128,
        dropout_ratio=0.1,
        num_classes=21,
        norm_cfg=dict(type='BN'),
        align_corners=False,
        loss_decode=dict(type='mmseg.CrossEntropyLoss')),
    test_cfg=dict(mode='whole'))
