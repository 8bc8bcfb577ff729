# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Midstream module of the zoo demo: CIFAR-10, ten classes.

    python tools/train.py configs/zoo_demo/midstream_cifar10_cls.py

Expect, of one CPU core, two minutes and 1.0 GB; an accuracy of about 0.66 with
the module as with the warmed head alone. One seed: README.md.
The scheme is the paper's: a frozen trunk, one ConvPass beside attention and
FFN of each block. Data, sizes, head, warm-up and schedule are ours.
"""
_base_ = [
    '../_base_/models/demo_cls.py',
    '../_base_/datasets/real/cifar10.py',
    '../_base_/schedules/demo_midstream.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        new_module='cifar10',
        adapter=dict(type='vim_mm.ConvPass', hidden_dims=8)))

custom_hooks = [
    dict(type='vim_mm.WarmHeadHook', epochs=10, evaluate=True),
    dict(
        type='vim_mm.ModuleToZooHook',
        zoo='work_dirs/zoo-demo/zoo',
        overwrite=True,
        dataset='CIFAR-10 at 98 px',
        task='cls',
        licence='none stated; research')
]

# to save minutes: each 20th of 20,000 images, each 10th of 2,000
train_dataloader = dict(dataset=dict(indices=range(0, 20000, 20)))
val_dataloader = dict(dataset=dict(indices=range(0, 2000, 10)))
train_cfg = dict(max_epochs=1)
param_scheduler = dict(total_steps=1)
