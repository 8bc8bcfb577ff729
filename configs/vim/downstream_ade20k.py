# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""ADE20K segmentation, 150 classes, by fused modules.

Command, on 4 GPUs:

    tools/dist_train.sh configs/vim/downstream_ade20k.py 4 --amp

Needs the modules below in ``work_dirs/zoo``: the midstream configs of this
folder leave them there. The module 'ade20k' is left out: it was trained on the
same images. ADE20K took images from Places, so 'places365' may have seen some,
with scene labels. Expected result: not measured at this scale, and no number
of the paper's is available. Hardware, an estimate and not measured (README.md
of this folder says how it is made): 1.3 M crops, 1.5 hours on 4 GPUs.

From the paper (ViM, arXiv 2303.06911, and its released code): trunk and
modules stay frozen; learned are one gate per module, layer and branch
(Ens-MoE: a softmax over learned logits) and the head: raw maps of blocks 3, 5,
7 and 11, a pyramid of transposed convolutions at full width, FPN, Semantic FPN
with 128 channels, batch norm, dropout 0.1.

Ours, since the paper is silent: ADE20K as a downstream task, gates that start
from each module's score and a head that is warmed on cached features, crops of
512 x 512 for which position embeddings are resized, 80,000 iterations of 16
images, AdamW and its rates. The last checkpoint counts, never the one that
validates best.

Batch norm sees the 4 images of one GPU; ``--cfg-options sync_bn=torch`` lets
it see all. Data: ``data/ade/ADEChallengeData2016`` as mmseg reads it.
"""
_base_ = [
    '../_base_/models/vim_seg.py',
    'mmseg::_base_/datasets/ade20k.py',
    '../_base_/schedules/vim_seg_80k.py',
    '../_base_/fusion_hooks.py',
]

model = dict(
    backbone=dict(
        zoo='work_dirs/zoo',
        modules=[
            'imagenet21k', 'imagenet1k', 'inat2021', 'places365', 'objects365',
            'coco', 'coco-stuff'
        ],
        fusion=dict(type='vim_mm.EnsMoE', tasks=['ade20k'])),
    decode_head=dict(num_classes=150))
