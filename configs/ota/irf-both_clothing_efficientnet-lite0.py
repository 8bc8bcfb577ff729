# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A variant of IRF: the second half learns on originals and re-represented
images, one of two each.

    python tools/train.py configs/ota/irf-both_clothing_efficientnet-lite0.py

The first half sees some images that went through the codebook twice, which
changes them a tenth as much as the first time. Not measured.
"""
_base_ = './irf_clothing_efficientnet-lite0.py'

share = dict(
    type='RandomApply',
    prob=0.5,
    transforms=[
        dict(type='vim_mm.ReRepresent', release=_base_.release, scale=2.)
    ])
pipeline = _base_.train_pipeline
pipeline.insert(-1, share)
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=pipeline)))
