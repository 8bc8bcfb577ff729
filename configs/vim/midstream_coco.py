# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""One ViM module learned on COCO, beside a frozen CLIP ViT-B/16.

Command, on 8 GPUs:

    tools/dist_train.sh configs/vim/midstream_coco.py 8 --amp

The run leaves ``work_dirs/zoo/coco`` (module, card, head) when it ends.
Expected result, hours and memory: not measured yet at this scale; the paper
publishes no number for it.

From the paper (ViM, arXiv 2303.06911, and its released code): the trunk, one
ConvPass adapter beside attention and one beside the FFN of each of the 12
blocks, a frozen trunk, maps of blocks 3, 5, 7 and 11, their pyramid of
transposed convolutions. Ours, since the paper is silent: COCO detection as the
midstream task, Mask R-CNN, h = 8, a pyramid narrowed to 256 channels, mmdet's
1x schedule, AdamW and its rates, CLIP's own mean and deviation.

Weights elsewhere: set ``VIM_MM_WEIGHTS``, or override
``model.backbone.trunk.init_cfg.checkpoint``. Data elsewhere: override
``train_dataloader.dataset.data_root``,
``val_dataloader.dataset.data_root`` and ``val_evaluator.ann_file``.
"""
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    '../_base_/default_runtime.py',
    '../_base_/trunks/clip_vit-b16.py',
]

model = dict(
    data_preprocessor=dict(
        **_base_.trunk_normalization,
        pad_size_divisor=32),
    backbone=dict(
        _delete_=True,
        type='vim_mm.ViMBackbone',
        trunk=_base_.trunk,
        new_module='coco',
        adapter=dict(type='vim_mm.ConvPass', hidden_dims=8)),
    neck=dict(
        _delete_=True,
        type='vim_mm.ViMFusionNeck',
        in_channels=(768, 768, 768, 768),
        scales=(4, 2, 1, 0.5),
        out_channels=256,
        pre_norm_cfg=dict(type='mmpretrain.LN2d'),
        norm_cfg=dict(type='mmpretrain.LN2d'),
        inner_neck=dict(
            type='mmdet.FPN',
            in_channels=[256, 256, 256, 256],
            out_channels=256,
            num_outs=5)))

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={'backbone.bank': dict(lr_mult=5., decay_mult=0.)},
        norm_decay_mult=0.),
    clip_grad=dict(max_norm=1.))

custom_hooks = [
    dict(
        type='vim_mm.ModuleToZooHook',
        zoo='work_dirs/zoo',
        dataset='COCO 2017 train, instances',
        task='det',
        licence='Apache-2.0')
]
