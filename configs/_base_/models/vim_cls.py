# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# The classifier of ViM's release with the statistics it normalises by.
_base_ = './vim_release_cls.py'

model = dict(
    data_preprocessor=dict(
        type='mmpretrain.ClsDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True))
