# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Midstream module of the demo: digit masks, segmentation.

    python tools/train.py configs/demo/midstream_digits_seg.py

Expect, on two CPU cores, 2 minutes and 1.3 GB; an mIoU of about 0.24 with the
module and 0.20 with the warmed head alone. Three seeds: README.md.
The scheme is the paper's: a frozen trunk, one ConvPass beside attention and
FFN of each block. Data, sizes, head, warm-up and schedule are ours.
"""
_base_ = [
    '../_base_/models/demo_seg.py',
    '../_base_/datasets/demo/digits_seg.py',
    '../_base_/schedules/demo_midstream.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        new_module='digit-masks',
        adapter=dict(type='vim_mm.ConvPass', hidden_dims=8)))

custom_hooks = [
    dict(type='vim_mm.WarmHeadHook', epochs=6, evaluate=True),
    dict(
        type='vim_mm.ModuleToZooHook',
        zoo='work_dirs/demo/zoo',
        overwrite=True,
        dataset='scikit-learn digits on packaged photographs, masks',
        task='seg',
        licence='CC BY 4.0 AND CC BY 2.0 AND CC0')
]

# to save minutes: the first of the 2400 images
train_dataloader = dict(dataset=dict(indices=1000))
train_cfg = dict(max_epochs=2)
param_scheduler = dict(total_steps=2)
