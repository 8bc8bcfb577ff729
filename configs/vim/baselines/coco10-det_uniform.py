# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""COCO 10 % detection: uniform gates, every module weighs 1 / N."""
_base_ = '../downstream_coco10-det.py'

model = dict(
    backbone=dict(fusion=dict(_delete_=True, type='vim_mm.FixedFusion')))
custom_hooks = _base_.head_hooks
