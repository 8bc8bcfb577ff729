# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""VOC 2012 segmentation: head alone, the bare frozen trunk."""
_base_ = '../downstream_voc2012-seg.py'

model = dict(backbone=dict(modules=[], fusion=None))
custom_hooks = _base_.head_hooks
