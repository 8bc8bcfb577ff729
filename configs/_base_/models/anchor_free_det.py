# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Maps of a trunk, normalised and projected to 96 channels, under an
# anchor-free head. A child gives the trunk, and the levels and strides that
# neck and head read.
model = dict(
    _scope_='mmdet',  # the head's own defaults are mmdet's types
    type='mmdet.SingleStageDetector',
    backbone=dict(type='vim_mm.ViMBackbone'),
    neck=dict(
        type='vim_mm.ViMFusionNeck',
        in_channels='auto',
        out_channels=96,
        pre_norm_cfg=dict(type='mmpretrain.LN2d')),
    bbox_head=dict(
        type='mmdet.CenterNetUpdateHead',
        in_channels='auto',
        feat_channels=96,
        stacked_convs=2,
        hm_min_radius=2,
        loss_cls=dict(
            type='mmdet.GaussianFocalLoss', pos_weight=0.25, neg_weight=0.75),
        loss_bbox=dict(type='mmdet.GIoULoss', loss_weight=2.0),
        norm_cfg=dict(type='GN', num_groups=16, requires_grad=True),
        # distances pass a ReLU: started about zero, as in mmdet, half of them
        # have no gradient, and in a short schedule some stay dead. They start
        # at two strides.
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
