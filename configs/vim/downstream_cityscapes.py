# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Cityscapes segmentation, 2,975 images, by fused modules.

Command, on 4 GPUs:

    tools/dist_train.sh configs/vim/downstream_cityscapes.py 4 --amp

Needs the modules below in ``work_dirs/zoo``: the midstream configs of this
folder leave them there. Whether images of a midstream set are also in
Cityscapes was not examined. Expected result: not measured at this scale, and
no number of the paper's is available. Hardware, an estimate and not measured
(README.md of this folder says how it is made): 0.6 M crops, 1.5 hours on 4
GPUs.

From the paper (ViM, arXiv 2303.06911, and its released code): trunk and
modules stay frozen; learned are one gate per module, layer and branch
(Ens-MoE: a softmax over learned logits) and the head: raw maps of blocks 3, 5,
7 and 11, a pyramid of transposed convolutions at full width, FPN, Semantic FPN
with 128 channels, batch norm, dropout 0.1.

Ours, since the paper is silent: Cityscapes as a downstream task, gates that
start from each module's score and a head that is warmed on cached features,
crops of 512 x 1024 for which position embeddings are resized, windows of that
size when tested, 80,000 iterations of 8 images, AdamW and its rates. The
last checkpoint counts, never the one that validates best.

Batch norm sees the 2 images of one GPU; ``--cfg-options sync_bn=torch`` lets
it see all. Data: ``data/cityscapes`` as mmseg reads it.
"""
_base_ = [
    '../_base_/models/vim_seg.py',
    'mmseg::_base_/datasets/cityscapes.py',
    '../_base_/schedules/vim_seg_80k.py',
    '../_base_/fusion_hooks.py',
]

model = dict(
    backbone=dict(
        zoo='work_dirs/zoo',
        modules=[
            'imagenet21k', 'imagenet1k', 'inat2021', 'places365', 'objects365',
            'coco', 'coco-stuff', 'ade20k'
        ],
        fusion=dict(type='vim_mm.EnsMoE', tasks=['cityscapes'])),
    data_preprocessor=dict(size=(512, 1024)),
    decode_head=dict(num_classes=19),
    test_cfg=dict(mode='slide', crop_size=(512, 1024), stride=(256, 512)))

auto_scale_lr = dict(base_batch_size=8)
