# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Cityscapes: LinearMoE, weights that need not sum to one.

Ours. They start from the modules' scores, by rank, and learn at a tenth of a
softmax's rate, since nothing bounds them.
"""
_base_ = '../downstream_cityscapes.py'

model = dict(backbone=dict(fusion=dict(type='vim_mm.LinearMoE')))
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'backbone.fusion': dict(lr_mult=5.)}))
