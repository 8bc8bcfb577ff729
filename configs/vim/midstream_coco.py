# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""One ViM module learned on COCO, beside a frozen CLIP ViT-B/16.

Command, on 8 GPUs:

    tools/dist_train.sh configs/vim/midstream_coco.py 8 --amp

The run leaves ``work_dirs/zoo/coco`` (module, card, head) when it ends.
Expected result: not measured at this scale, and the paper publishes none.
Hardware, an estimate and not measured (README.md of this folder says how it is
made): 1.4 M images, 4 hours on 8 GPUs.

From the paper (ViM, arXiv 2303.06911, and its released code): the trunk, one
ConvPass adapter beside attention and one beside the FFN of each of the 12
blocks, a frozen trunk, the statistics that images are normalised by.

Ours, since the paper is silent: COCO detection as the midstream task, Mask
R-CNN, h = 8, a pyramid of maps of blocks 3, 5, 7 and 11 made like that of the
released segmentation head, but normalised (LN before it and, for BN, inside)
and narrowed to 256 channels, mmdet's 1x schedule, AdamW and its rates.

Weights elsewhere: set ``VIM_MM_WEIGHTS``, or override
``model.backbone.trunk.init_cfg.checkpoint``. Data elsewhere: override
``train_dataloader.dataset.data_root``, ``val_dataloader.dataset.data_root``
and ``val_evaluator.ann_file``.
"""
_base_ = [
    '../_base_/models/vim_mask-rcnn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/vim_det_1x.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        new_module='coco', adapter=dict(type='vim_mm.ConvPass',
                                        hidden_dims=8)))

custom_hooks = [
    dict(
        type='vim_mm.ModuleToZooHook',
        zoo='work_dirs/zoo',
        dataset='COCO 2017 train, instances',
        task='det',
        licence='Apache-2.0')
]
