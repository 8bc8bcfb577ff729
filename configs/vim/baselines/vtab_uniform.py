# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""VTAB-1k: uniform gates, every module weighs 1 / N."""
_base_ = '../downstream_vtab.py'

model = dict(
    backbone=dict(fusion=dict(_delete_=True, type='vim_mm.FixedFusion')))
custom_hooks = _base_.head_hooks
work_dir = f'work_dirs/vtab_uniform/{_base_.task}'
