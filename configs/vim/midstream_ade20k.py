# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""One ViM module learned on ADE20K.

Command, on 4 GPUs:

    tools/dist_train.sh configs/vim/midstream_ade20k.py 4 --amp

The run leaves ``work_dirs/zoo/ade20k`` (module, card, head) when it ends.
Expected result: not measured at this scale, and the paper publishes none.
Hardware, an estimate and not measured (README.md of this folder says how it is
made): 1.3 M crops, 1.5 hours on 4 GPUs.

From the paper (ViM, arXiv 2303.06911, and its released code): the trunk, one
ConvPass adapter beside attention and one beside the FFN of each of the 12
blocks, a frozen trunk. The paper gives no evidence that ADE20K was a midstream
set; a zoo of ours has it.

Ours, since the paper is silent: the head, which is that of the released
downstream tasks (raw maps of blocks 3, 5, 7 and 11, a pyramid of transposed
convolutions at full width, FPN, Semantic FPN with 128 channels, batch norm,
dropout 0.1), cross entropy, h = 8, crops of 512 x 512 for which position
embeddings are resized (the release works at 224 x 224 only), 80,000 iterations
of 16 images, AdamW and its rates.

Batch norm sees the 4 images of one GPU; ``--cfg-options sync_bn=torch`` lets
it see all. Data: ``data/ade/ADEChallengeData2016`` as mmseg reads it.
"""
_base_ = [
    '../_base_/models/vim_seg.py',
    'mmseg::_base_/datasets/ade20k.py',
    '../_base_/schedules/vim_seg_80k.py',
]

model = dict(
    backbone=dict(
        new_module='ade20k',
        adapter=dict(type='vim_mm.ConvPass', hidden_dims=8)),
    decode_head=dict(num_classes=150))

custom_hooks = [
    dict(
        type='vim_mm.ModuleToZooHook',
        zoo='work_dirs/zoo',
        dataset='ADE20K, ADEChallengeData2016 training',
        task='seg',
        licence='Apache-2.0 (data: terms of ADE20K)')
]
