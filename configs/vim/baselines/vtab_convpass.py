# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""VTAB-1k: ConvPass from scratch, one fresh module.

Dropout as Convpass has it on VTAB-1k. Its drop path of 0.1 is left out; its
output scale, which it sets per task, stays 1, and convolutions start as the
identity in all tasks (in 10 of them its own start is Xavier).
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
