# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""ADE20K: head alone, the bare frozen trunk."""
_base_ = '../downstream_ade20k.py'

model = dict(backbone=dict(modules=[], fusion=None))
custom_hooks = _base_.head_hooks
