# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""One ViM module learned on Places365.

Command, on 8 GPUs:

    tools/dist_train.sh configs/vim/midstream_places365.py 8 --amp

The run leaves ``work_dirs/zoo/places365`` (module, card, head) when it ends.
Expected result: not measured at this scale, and the paper publishes none.
Hardware, an estimate and not measured (README.md of this folder says how it is
made): 18 M images, 1.2 hours on 8 GPUs.

From the paper (ViM, arXiv 2303.06911, and its released code): the trunk, one
ConvPass adapter beside attention and one beside the FFN of each of the 12
blocks, a frozen trunk, the statistics that images are normalised by. The
paper's figure says "Places365, 1.80 M"; that this is Places365-Standard is
read off its size.

Ours, since the paper is silent: h = 8, a linear head on the class token (the
one of the released downstream tasks), the crop and flip, AdamW and its rates,
10 epochs, CLIP's projection 768 -> 512 left out (it is linear, and so is the
head).

Data: see ``configs/_base_/datasets/places365.py``.
"""
_base_ = [
    '../_base_/models/vim_cls.py',
    '../_base_/datasets/places365.py',
    '../_base_/schedules/vim_midstream_cls.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        new_module='places365',
        adapter=dict(type='vim_mm.ConvPass', hidden_dims=8)),
    head=dict(num_classes=365))

custom_hooks = [
    dict(
        type='vim_mm.ModuleToZooHook',
        zoo='work_dirs/zoo',
        dataset='Places365-Standard train',
        task='cls',
        licence='Apache-2.0 (data: terms of Places365)')
]
