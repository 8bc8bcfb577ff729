# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Midstream module of the zoo demo: photographs of clothes, ten classes.

    python tools/train.py configs/zoo_demo/midstream_clothing_cls.py

Expect, of one CPU core, two minutes and 1.0 GB; an accuracy of about 0.74 with
the module as with the warmed head alone. One seed: README.md.
The scheme is the paper's: a frozen trunk, one ConvPass beside attention and
FFN of each block. Data, sizes, head, warm-up and schedule are ours.
"""
_base_ = [
    '../_base_/models/demo_cls.py',
    '../_base_/datasets/real/clothing.py',
    '../_base_/schedules/demo_midstream.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        new_module='clothing',
        adapter=dict(type='vim_mm.ConvPass', hidden_dims=8)))

custom_hooks = [
    dict(type='vim_mm.WarmHeadHook', epochs=10, evaluate=True),
    dict(
        type='vim_mm.ModuleToZooHook',
        zoo='work_dirs/zoo-demo/zoo',
        overwrite=True,
        dataset='clothing-dataset-small, short sides at 224 px',
        task='cls',
        licence='CC0-1.0')
]

train_cfg = dict(max_epochs=1)
param_scheduler = dict(total_steps=1)
# to save minutes: every other image
train_dataloader = dict(dataset=dict(indices=range(0, 1817, 2)))
val_dataloader = dict(dataset=dict(indices=range(0, 341, 2)))
