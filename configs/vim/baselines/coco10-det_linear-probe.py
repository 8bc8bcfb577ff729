# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""COCO 10 % detection: head alone, the bare frozen trunk."""
_base_ = '../downstream_coco10-det.py'

model = dict(backbone=dict(modules=[], fusion=None))
custom_hooks = _base_.head_hooks
