# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# The student of `make demo-student` for solar cells: MobileNetV2 of ImageNet
# under a linear head on standardised features.
_base_ = '../trunks/mobilenet_v2.py'

backbone = _base_.trunk
backbone.update(out_indices=(7, ), norm_eval=True)
student = dict(
    type='mmpretrain.ImageClassifier',
    backbone=backbone,
    neck=dict(type='vim_mm.StandardizedPooling', in_channels='auto'),
    head=dict(
        type='mmpretrain.LinearClsHead',
        num_classes=2,
        in_channels='auto',
        loss=dict(type='mmpretrain.CrossEntropyLoss'),
        init_cfg=dict(type='Constant', layer='Linear', val=0.)))
