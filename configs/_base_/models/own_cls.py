# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Classifier of one's own task beside any trunk: pooled features of all its
# outputs, standardised, under a linear head. A child gives the trunk, the name
# of the module and the number of classes.
model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(
        type='vim_mm.ViMBackbone',
        adapter=dict(type='vim_mm.ConvPass', hidden_dims=8)),
    neck=dict(type='vim_mm.StandardizedPooling', in_channels='auto'),
    head=dict(
        type='mmpretrain.LinearClsHead',
        in_channels='auto',
        loss=dict(type='mmpretrain.CrossEntropyLoss'),
        init_cfg=dict(type='Constant', layer='Linear', val=0.)))
