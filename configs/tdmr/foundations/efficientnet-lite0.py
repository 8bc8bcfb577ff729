# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""EfficientNet-Lite0 as a foundation model: features, no head.

The header of the base says where its weights come from.
"""
_base_ = '../../_base_/trunks/efficientnet_lite0.py'

model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=_base_.trunk,
    data_preprocessor=dict(
        type='mmpretrain.ClsDataPreprocessor',
        to_rgb=True,
        **_base_.trunk_normalization))
