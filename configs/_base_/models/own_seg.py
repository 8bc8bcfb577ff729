# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Segmentor of one's own task beside any trunk. A child gives the trunk, the
# name of the module, the number of classes, and the levels that neck and head
# read.
_base_ = './conv_seg.py'

model = dict(
    backbone=dict(adapter=dict(type='vim_mm.ConvPass', hidden_dims=8)),
    # ignored pixels are no share of the mean
    decode_head=dict(
        loss_decode=dict(type='mmseg.CrossEntropyLoss', avg_non_ignore=True)))
