# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Midstream module of the demo: tree crowns in aerial images, detection.

    python tools/train.py configs/demo/midstream_tree-crowns_det.py

Expect, on two CPU cores, 2.5 minutes and 1.2 GB; an AP50 of about 0.48 with
the module and 0.44 with the warmed head alone. Three seeds: README.md.
The scheme is the paper's: a frozen trunk, one ConvPass beside attention and
FFN of each block. Data, sizes, head, warm-up and schedule are ours.
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
        dataset='Tree crowns (deepforest 2.1.0), 225 tiles of one image',
        task='det',
        licence='MIT')
]

train_dataloader = dict(batch_size=4)
train_cfg = dict(max_epochs=3)
param_scheduler = dict(total_steps=3)
