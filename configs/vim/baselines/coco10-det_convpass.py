# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""COCO 10 % detection: ConvPass from scratch, one fresh module."""
_base_ = '../downstream_coco10-det.py'

model = dict(
    backbone=dict(
        modules=[],
        fusion=None,
        new_module='scratch',
        adapter=dict(type='vim_mm.ConvPass', hidden_dims=8)))
custom_hooks = _base_.head_hooks
