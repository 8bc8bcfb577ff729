# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""VTAB-1k: linear probe, the bare frozen trunk."""
_base_ = '../downstream_vtab.py'

model = dict(backbone=dict(modules=[], fusion=None))
custom_hooks = _base_.head_hooks
work_dir = f'work_dirs/vtab_linear-probe/{_base_.task}'
