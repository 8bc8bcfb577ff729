# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Cityscapes: head alone, the bare frozen trunk."""
_base_ = '../downstream_cityscapes.py'

model = dict(backbone=dict(modules=[], fusion=None))
custom_hooks = _base_.head_hooks
