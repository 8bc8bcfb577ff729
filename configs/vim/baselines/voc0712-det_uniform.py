# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""VOC 07+12 detection: uniform gates, every module weighs 1 / N."""
_base_ = '../downstream_voc0712-det.py'

model = dict(
    backbone=dict(fusion=dict(_delete_=True, type='vim_mm.FixedFusion')))
custom_hooks = _base_.head_hooks
