# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Detector of one's own task beside any trunk. A child gives the trunk, the
# name of the module, the number of classes, and the levels that neck and head
# read.
_base_ = './anchor_free_det.py'

model = dict(
    backbone=dict(adapter=dict(type='vim_mm.ConvPass', hidden_dims=8)),
    neck=dict(norm_cfg=dict(type='mmpretrain.LN2d')))
