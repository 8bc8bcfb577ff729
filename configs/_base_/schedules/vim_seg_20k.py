# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# A quarter of the 80k schedule, for a thousand images or so.
_base_ = './vim_seg_80k.py'

max_iters = 20000
train_cfg = dict(max_iters=max_iters, val_interval=2000)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(end=max_iters)
default_hooks = dict(checkpoint=dict(interval=2000))
