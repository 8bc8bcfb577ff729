# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# One task a step, as often as its weight says, and each judged by its own
# library: give `max_iters`, `val_interval` and `weights` of the loop.
_base_ = './mtht_demo.py'

train_cfg = dict(_delete_=True, type='vim_mm.MultiTaskTrainLoop')
val_cfg = dict(type='vim_mm.MultiTaskValLoop')
test_cfg = dict(type='vim_mm.MultiTaskTestLoop')
