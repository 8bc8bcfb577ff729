# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""One ViM module learned on COCO-Stuff 164k.

Command, on 4 GPUs:

    tools/dist_train.sh configs/vim/midstream_coco-stuff.py 4 --amp

The run leaves ``work_dirs/zoo/coco-stuff`` (module, card, head) when it ends.
Expected result: not measured at this scale, and the paper publishes none.
Hardware, an estimate and not measured (README.md of this folder says how it is
made): 1.3 M crops, 1.5 hours on 4 GPUs.

From the paper (ViM, arXiv 2303.06911, and its released code): the trunk, one
ConvPass adapter beside attention and one beside the FFN of each of the 12
blocks, a frozen trunk. The paper's figure says "COCO-Stuff, 0.16 M"; that this
is the 164k version is read off its size.

Ours, since the paper is silent: the head, which is that of the released
downstream tasks (raw maps of blocks 3, 5, 7 and 11, a pyramid of transposed
convolutions at full width, FPN, Semantic FPN with 128 channels, batch norm,
dropout 0.1), cross entropy, h = 8, crops of 512 x 512 for which position
embeddings are resized (the release works at 224 x 224 only), 80,000 iterations
of 16 images, AdamW and its rates.

Batch norm sees the 4 images of one GPU; ``--cfg-options sync_bn=torch`` lets
it see all. Data: ``data/coco_stuff164k`` as mmseg reads it.
"""
_base_ = [
    '../_base_/models/vim_seg.py',
    'mmseg::_base_/datasets/coco-stuff164k.py',
    '../_base_/schedules/vim_seg_80k.py',
]

model = dict(
    backbone=dict(
        new_module='coco-stuff',
        adapter=dict(type='vim_mm.ConvPass', hidden_dims=8)),
    decode_head=dict(num_classes=171))

custom_hooks = [
    dict(
        type='vim_mm.ModuleToZooHook',
        zoo='work_dirs/zoo',
        dataset='COCO-Stuff 164k train',
        task='seg',
        licence='Apache-2.0 (data: terms of COCO-Stuff)')
]
