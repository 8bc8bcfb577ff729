# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Maps of a trunk, normalised and projected to 64 channels, under two 1x1
# convolutions. A child gives the trunk, the levels that neck and head read,
# and the loss.
model = dict(
    type='mmseg.EncoderDecoder',
    backbone=dict(type='vim_mm.ViMBackbone'),
    neck=dict(
        type='vim_mm.ViMFusionNeck',
        in_channels='auto',
        out_channels=64,
        pre_norm_cfg=dict(type='mmpretrain.LN2d'),
        norm_cfg=dict(type='mmpretrain.LN2d')),
    decode_head=dict(
        type='mmseg.FCNHead',
        in_channels='auto',
        channels=64,
        num_convs=1,
        kernel_size=1,
        concat_input=False,
        dropout_ratio=0.,
        norm_cfg=None,
        align_corners=False),
    test_cfg=dict(mode='whole'))
