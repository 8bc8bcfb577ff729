# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Midstream module of the demo: digits on photographs, ten classes.

    python tools/train.py configs/demo/midstream_digits_cls.py

Expect, on two CPU cores, 80 s and 1.1 GB; an accuracy of about 0.71 with the
module and 0.55 with the warmed head alone. Three seeds: README.md.
The scheme is the paper's: a frozen trunk, one ConvPass beside attention and
FFN of each block. Data, sizes, head, warm-up and schedule are ours.
"""
_base_ = [
    '../_base_/models/demo_cls.py',
    '../_base_/datasets/demo/digits_cls.py',
    '../_base_/schedules/demo_midstream.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        new_module='digit-classes',
        adapter=dict(type='vim_mm.ConvPass', hidden_dims=8)))

custom_hooks = [
    dict(type='vim_mm.WarmHeadHook', epochs=10, evaluate=True),
    dict(
        type='vim_mm.ModuleToZooHook',
        zoo='work_dirs/demo/zoo',
        overwrite=True,
        dataset='scikit-learn digits on packaged photographs, classes',
        task='cls',
        licence='CC BY 4.0 AND CC BY 2.0 AND CC0')
]

# to save minutes: the first of the 2400 images
train_dataloader = dict(batch_size=8, dataset=dict(indices=1000))
train_cfg = dict(max_epochs=1)
param_scheduler = dict(total_steps=1)
