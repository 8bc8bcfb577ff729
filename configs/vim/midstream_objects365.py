# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""One ViM module learned on Objects365 v2.

Command, on 8 GPUs:

    tools/dist_train.sh configs/vim/midstream_objects365.py 8 --amp

The run leaves ``work_dirs/zoo/objects365`` (module, card, head) when it ends.
Expected result: not measured at this scale, and the paper publishes none.
Hardware, an estimate and not measured (README.md of this folder says how it is
made): 5.2 M images, 14 hours on 8 GPUs.

From the paper (ViM, arXiv 2303.06911, and its released code): the trunk, one
ConvPass adapter beside attention and one beside the FFN of each of the 12
blocks, a frozen trunk, the statistics that images are normalised by. The
paper's figure says "Objects365, 1.8 M"; that this is version 2 is read off its
size.

Ours, since the paper is silent: Faster R-CNN, h = 8, a pyramid of maps of
blocks 3, 5, 7 and 11 made like that of the released segmentation head, but
normalised (LN before it and, for BN, inside) and narrowed to 256 channels, 3
epochs, AdamW and its rates.

Data: ``data/Objects365/Obj365_v2`` as mmdet reads it.
"""
_base_ = [
    '../_base_/models/vim_faster-rcnn.py',
    'mmdet::_base_/datasets/objects365v2_detection.py',
    '../_base_/schedules/vim_det_1x.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        new_module='objects365',
        adapter=dict(type='vim_mm.ConvPass', hidden_dims=8)),
    roi_head=dict(bbox_head=dict(num_classes=365)))

max_epochs = 3
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(end=max_epochs, milestones=[2])
custom_hooks = [
    dict(
        type='vim_mm.ModuleToZooHook',
        zoo='work_dirs/zoo',
        dataset='Objects365 v2 train',
        task='det',
        licence='Apache-2.0 (data: terms of Objects365)')
]
