# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# The segmentor of ViM's release with the statistics it normalises by, at any
# size: images are padded to multiples of 32 when tested.
_base_ = './vim_release_seg.py'

model = dict(
    data_preprocessor=dict(
        type='mmseg.SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
        test_cfg=dict(size_divisor=32)))
