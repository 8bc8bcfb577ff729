# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Midstream module of the demo: tree crowns, detection, seen from the air.

    python tools/train.py configs/demo/midstream_tree-crowns_det.py

Measured on two CPU cores, one seed, 225 pictures, 143 s, peak 1154 MB: AP50 on
12 pictures 0.432 with the warmed head alone, 0.472 with the module (commit
f592be6); three seeds in README.md.
The scheme (frozen trunk, one ConvPass beside attention and FFN of each block)
is the paper's; data, sizes, head, warm-up and schedule are ours.
"""
_base_ = [
    '../_base_/models/demo_det.py',
    '../_base_/datasets/demo/tree_crowns.py',
    '../_base_/schedules/demo_midstream.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        new_module='trees',
        adapter=dict(type='vim_mm.ConvPass', hidden_dims=8)))

custom_hooks = [
    dict(type='vim_mm.WarmHeadHook', epochs=6, evaluate=True),
    dict(
        type='vim_mm.ModuleToZooHook',
        zoo='work_dirs/demo/zoo',
        overwrite=True,
        dataset='Tree crowns (deepforest 2.1.0), 225 tiles of one picture',
        task='det',
        licence='MIT')
]

train_dataloader = dict(batch_size=4)
train_cfg = dict(max_epochs=3)
param_scheduler = dict(total_steps=3)
