# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Midstream module of the zoo demo: things and stuff of COCO, 133 classes.

    python tools/train.py configs/zoo_demo/midstream_coco_seg.py

Expect, of one CPU core, seven minutes and 1.4 GB; an mIoU of about 0.021 with
the module and 0.017 with the warmed head alone. One seed: README.md.
The scheme is the paper's: a frozen trunk, one ConvPass beside attention and
FFN of each block. Data, sizes, head, warm-up and schedule are ours.
"""
_base_ = [
    '../_base_/models/demo_seg.py',
    '../_base_/datasets/real/coco_semantic.py',
    '../_base_/schedules/demo_midstream.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        new_module='coco-semantic',
        adapter=dict(type='vim_mm.ConvPass', hidden_dims=8)),
    decode_head=dict(
        num_classes=133,
        # the weights of the base are for digits, which cover little
        loss_decode=dict(class_weight=None)))

custom_hooks = [
    dict(type='vim_mm.WarmHeadHook', epochs=20, evaluate=True),
    dict(
        type='vim_mm.ModuleToZooHook',
        zoo='work_dirs/zoo-demo/zoo',
        overwrite=True,
        dataset='COCO 2017, semantic maps of 100 images',
        task='seg',
        licence='CC BY 4.0, photographs partly non-commercial')
]

train_cfg = dict(max_epochs=6)
param_scheduler = dict(total_steps=6)
# to save minutes: every other image
val_dataloader = dict(dataset=dict(indices=range(0, 100, 2)))
