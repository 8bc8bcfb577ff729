# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""VTAB-1k: ConvPass from scratch, one fresh module.

Dropout as Convpass has it on VTAB-1k; its output scale, which it sets per
task, stays 1.
"""
_base_ = '../downstream_vtab.py'

model = dict(
    backbone=dict(
        modules=[],
        fusion=None,
        new_module='scratch',
        adapter=dict(type='vim_mm.ConvPass', hidden_dims=8, drop_rate=0.1)))
custom_hooks = _base_.head_hooks
work_dir = f'work_dirs/vtab_convpass/{_base_.task}'
