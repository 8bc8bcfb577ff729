# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Classifier of ViM's release: one linear layer on the class token after the
# final norm. CLIP's projection 768 -> 512 before it is linear too and is
# folded into the layer.
_base_ = '../trunks/clip_vit-b16.py'

trunk = _base_.trunk
trunk.update(out_indices=-1, out_type='cls_token', final_norm=True)
model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(type='vim_mm.ViMBackbone', trunk=trunk),
    head=dict(
        type='mmpretrain.LinearClsHead',
        num_classes=1000,
        in_channels=768,
        loss=dict(type='mmpretrain.CrossEntropyLoss')))
