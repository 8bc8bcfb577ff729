# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""COCO detection from a tenth of its images, by fused modules.

First draw the tenth, from the folder that holds ``data``:

    python MMDET/.mim/tools/misc/split_coco.py --fold 1

(MMDET: the folder of the installed mmdet). Command, on 8 GPUs:

    tools/dist_train.sh configs/vim/downstream_coco10-det.py 8 --amp

Needs the modules below in ``work_dirs/zoo``: the midstream configs of this
folder leave them there. The modules 'coco' and 'coco-stuff' are left out: they
were trained on all of these images, with boxes and with masks. Expected
result: not measured at this scale, and no number of the paper's is available.
Hardware, an estimate and not measured (README.md of this folder says how it is
made): 0.3 M images, 45 minutes on 8 GPUs.

From the paper (ViM, arXiv 2303.06911, and its released code): trunk and
modules stay frozen; learned are one gate per module, layer and branch
(Ens-MoE: a softmax over learned logits) and the head.

Ours, since the paper is silent: the task, Faster R-CNN, a pyramid of maps of
blocks 3, 5, 7 and 11 made like that of the released segmentation head, but
normalised (LN before it and, for BN, inside) and narrowed to 256 channels,
gates that start from each module's score and a head that is warmed on cached
features, 24 epochs, AdamW and its rates. The last checkpoint counts, never the
one that validates best.

Data: ``data/coco`` as mmdet reads it, and ``data/coco/semi_anns``.
"""
_base_ = [
    '../_base_/models/vim_faster-rcnn.py',
    '../_base_/datasets/coco_10-percent.py',
    '../_base_/schedules/vim_det_1x.py',
    '../_base_/fusion_hooks.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        zoo='work_dirs/zoo',
        modules=[
            'imagenet21k', 'imagenet1k', 'inat2021', 'places365', 'objects365',
            'ade20k'
        ],
        fusion=dict(type='vim_mm.EnsMoE', tasks=['coco10-det'])),
    roi_head=dict(bbox_head=dict(num_classes=80)))

max_epochs = 24
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(end=max_epochs, milestones=[16, 22])
