# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Midstream module of the demo: solar cells, functional or defective.

    python tools/train.py configs/demo/midstream_solar-cells_cls.py

Measured on two CPU cores, one seed, 417 pictures, 36 s, peak 938 MB: accuracy
on 240 pictures 0.754 with the warmed head alone, 0.771 with the module (commit
80feed7); three seeds in README.md.
The scheme (frozen trunk, one ConvPass beside attention and FFN of each block)
is the paper's; data, sizes, head, warm-up and schedule are ours.
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

# minutes matter here: every other cell
train_dataloader = dict(batch_size=8, dataset=dict(indices=range(0, 834, 2)))
train_cfg = dict(max_epochs=1)
# a head that fits is easily thrown off: 1e-3 lost on other stretches of cells
optim_wrapper = dict(optimizer=dict(lr=3e-4))
param_scheduler = dict(total_steps=1, eta_max=3e-4)
