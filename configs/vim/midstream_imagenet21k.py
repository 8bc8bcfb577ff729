# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""One ViM module learned on ImageNet-21k-P.

Command, on 8 GPUs:

    tools/dist_train.sh configs/vim/midstream_imagenet21k.py 8 --amp

The run leaves ``work_dirs/zoo/imagenet21k`` (module, card, head) when it ends.
Expected result: not measured at this scale, and the paper publishes none.
Hardware, an estimate and not measured (README.md of this folder says how it is
made): 59 M images, 4 hours on 8 GPUs if the disks deliver 4,000
images per second.

From the paper (ViM, arXiv 2303.06911, and its released code): the trunk, one
ConvPass adapter beside attention and one beside the FFN of each of the 12
blocks, a frozen trunk, the statistics that images are normalised by. The
paper's figure says "ImageNet, 12 M"; that this is the filtered ImageNet-21k-P
is read off its size.

Ours, since the paper is silent: h = 8, a linear head on the class token (the
one of the released downstream tasks), the crop and flip, cross entropy over
single labels, AdamW and its rates, 5 epochs, CLIP's projection 768 -> 512 left
out (it is linear, and so is the head).

Data: see ``configs/_base_/datasets/imagenet21k_p.py``. For the Winter 2021
release set ``model.head.num_classes=10450``.
"""
_base_ = [
    '../_base_/models/vim_cls.py',
    '../_base_/datasets/imagenet21k_p.py',
    '../_base_/schedules/vim_midstream_cls.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        new_module='imagenet21k',
        adapter=dict(type='vim_mm.ConvPass', hidden_dims=8)),
    head=dict(num_classes=11221))

max_epochs = 5
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=max_epochs)

custom_hooks = [
    dict(
        type='vim_mm.ModuleToZooHook',
        zoo='work_dirs/zoo',
        dataset='ImageNet-21k-P, Fall 2011',
        task='cls',
        licence='Apache-2.0 (data: terms of ImageNet)')
]
