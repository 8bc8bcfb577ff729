# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""ViT-B/14 of DINOv2 as a foundation model: class token, no head.

The header of the base says where its weights come from.
"""
_base_ = '../../_base_/trunks/dinov2_vit-b14.py'

trunk = _base_.trunk
trunk.update(out_indices=11, out_type='cls_token', final_norm=True)
model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=trunk,
    data_preprocessor=dict(
        type='mmpretrain.ClsDataPreprocessor',
        to_rgb=True,
        **_base_.trunk_normalization))
