# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Midstream module of the demo: solar cells, functional or defective.

    python tools/train.py configs/demo/midstream_solar-cells_cls.py

Expect, on two CPU cores, 40 s and 1.0 GB; an accuracy of about 0.76, with the
module as with the warmed head alone. Three seeds: README.md.
The scheme is the paper's: a frozen trunk, one ConvPass beside attention and
FFN of each block. Data, sizes, head, warm-up and schedule are ours.
"""
_base_ = [
    '../_base_/models/demo_cls.py',
    '../_base_/datasets/demo/solar_cells.py',
    '../_base_/schedules/demo_midstream.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        new_module='solar',
        adapter=dict(type='vim_mm.ConvPass', hidden_dims=8)),
    head=dict(num_classes=2))

custom_hooks = [
    dict(type='vim_mm.WarmHeadHook', epochs=10, evaluate=True),
    dict(
        type='vim_mm.ModuleToZooHook',
        zoo='work_dirs/demo/zoo',
        overwrite=True,
        dataset='ELPV, mono-crystalline cells',
        task='cls',
        licence='CC BY-NC-SA 4.0')
]

# to save minutes: every other cell
train_dataloader = dict(batch_size=8, dataset=dict(indices=range(0, 834, 2)))
train_cfg = dict(max_epochs=1)
# small, since the head fits already: 1e-3 lost accuracy
optim_wrapper = dict(optimizer=dict(lr=3e-4))
param_scheduler = dict(total_steps=1, eta_max=3e-4)
