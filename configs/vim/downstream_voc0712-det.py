# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""PASCAL VOC 07+12 detection, 16,551 images, by fused modules.

Command, on 8 GPUs:

    tools/dist_train.sh configs/vim/downstream_voc0712-det.py 8 --amp

Needs the modules below in ``work_dirs/zoo``: the midstream configs of this
folder leave them there. Whether images of a midstream set are also in VOC was
not examined. Expected result: not measured at this scale, and no number of the
paper's is available. Hardware, an estimate and not measured (README.md of this
folder says how it is made): 0.2 M images, 20 minutes on 8 GPUs.

From the paper (ViM, arXiv 2303.06911, and its released code): trunk and
modules stay frozen; learned are one gate per module, layer and branch
(Ens-MoE: a softmax over learned logits) and the head.

Ours, since the paper is silent: VOC detection as a downstream task, Faster
R-CNN, a pyramid of maps of blocks 3, 5, 7 and 11 made like that of the
released segmentation head, but normalised (LN before it and, for BN, inside)
and narrowed to 256 channels, gates that start from each module's score and a
head that is warmed on cached features, mmdet's schedule for VOC (4 epochs of 3
rounds), AdamW and its rates. Validation would be on test 2007, so it runs
once, after the last epoch.

Data: ``data/VOCdevkit/{VOC2007,VOC2012}`` as mmdet reads it.
"""
_base_ = [
    '../_base_/models/vim_faster-rcnn.py',
    'mmdet::_base_/datasets/voc0712.py',
    '../_base_/schedules/vim_det_1x.py',
    '../_base_/fusion_hooks.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        zoo='work_dirs/zoo',
        modules=[
            'imagenet21k', 'imagenet1k', 'inat2021', 'places365', 'objects365',
            'coco', 'coco-stuff', 'ade20k'
        ],
        fusion=dict(type='vim_mm.EnsMoE', tasks=['voc0712-det'])),
    roi_head=dict(bbox_head=dict(num_classes=20)))

max_epochs = 4
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(end=max_epochs, milestones=[3])
