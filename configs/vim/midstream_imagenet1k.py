# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""One ViM module learned on ImageNet-1k.

Command, on 8 GPUs:

    tools/dist_train.sh configs/vim/midstream_imagenet1k.py 8 --amp

The run leaves ``work_dirs/zoo/imagenet1k`` (module, card, head) when it ends.
Expected result: not measured at this scale, and the paper publishes none.
Hardware, an estimate and not measured (README.md of this folder says how it is
made): 26 M images, 2 hours on 8 GPUs.

From the paper (ViM, arXiv 2303.06911, and its released code): the trunk, one
ConvPass adapter beside attention and one beside the FFN of each of the 12
blocks, a frozen trunk, the statistics that images are normalised by.

Ours, since the paper is silent: ImageNet-1k as a midstream set (the paper's
figure has the larger ImageNet), h = 8, a linear head on the class token (the
one of the released downstream tasks), the crop and flip, AdamW and its rates,
20 epochs, CLIP's projection 768 -> 512 left out (it is linear, and so is the
head).

Data: ``data/imagenet`` as mmpretrain reads it. Elsewhere: override
``train_dataloader.dataset.data_root`` and
``val_dataloader.dataset.data_root``.
"""
_base_ = [
    '../_base_/models/vim_cls.py',
    'mmpretrain::_base_/datasets/imagenet_bs32_pil_bicubic.py',
    '../_base_/schedules/vim_midstream_cls.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        new_module='imagenet1k',
        adapter=dict(type='vim_mm.ConvPass', hidden_dims=8)),
    head=dict(num_classes=1000))

train_dataloader = dict(batch_size=128)
val_dataloader = dict(batch_size=128)
test_dataloader = val_dataloader

max_epochs = 20
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=max_epochs)

custom_hooks = [
    dict(
        type='vim_mm.ModuleToZooHook',
        zoo='work_dirs/zoo',
        dataset='ImageNet-1k train',
        task='cls',
        licence='Apache-2.0 (data: terms of ImageNet)')
]
