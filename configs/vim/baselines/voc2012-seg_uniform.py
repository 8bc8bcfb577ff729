# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""VOC 2012 segmentation: uniform gates, every module weighs 1 / N."""
_base_ = '../downstream_voc2012-seg.py'

model = dict(
    backbone=dict(fusion=dict(_delete_=True, type='vim_mm.FixedFusion')))
custom_hooks = _base_.head_hooks
