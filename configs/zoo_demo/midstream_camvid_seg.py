# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Midstream module of the zoo demo: driving scenes of CamVid, eleven classes.

    python tools/train.py configs/zoo_demo/midstream_camvid_seg.py

Expect, of one CPU core, four minutes and 1.2 GB; an mIoU of about 0.44 with
the module and 0.41 with the warmed head alone. One seed: README.md.
The scheme is the paper's: a frozen trunk, one ConvPass beside attention and
FFN of each block. Data, sizes, head, warm-up and schedule are ours.
"""
_base_ = [
    '../_base_/models/demo_seg.py',
    '../_base_/datasets/real/camvid.py',
    '../_base_/schedules/demo_midstream.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        new_module='camvid',
        adapter=dict(type='vim_mm.ConvPass', hidden_dims=8)),
    decode_head=dict(
        # the weights of the base are for digits, which cover little
        loss_decode=dict(class_weight=None)))

custom_hooks = [
    dict(type='vim_mm.WarmHeadHook', epochs=6, evaluate=True),
    dict(
        type='vim_mm.ModuleToZooHook',
        zoo='work_dirs/zoo-demo/zoo',
        overwrite=True,
        dataset='CamVid at 182 x 140',
        task='seg',
        licence='CC-BY-NC-4.0')
]

train_cfg = dict(max_epochs=3)
param_scheduler = dict(total_steps=3)
