# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Cityscapes: full fine-tuning, the trunk unfrozen and no module.

The smaller rate of the trunk and the warmed head are ours.
"""
_base_ = '../downstream_cityscapes.py'

model = dict(backbone=dict(_delete_=True, **_base_.trunk))
custom_hooks = _base_.head_hooks
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))))
