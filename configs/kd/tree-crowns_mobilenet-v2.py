# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Tree crowns from the air: a MobileNetV2 CenterNet learns of a ViM detector.

    python tools/train.py configs/demo/midstream_tree-crowns_det.py
    python tools/train.py configs/kd/tree-crowns_mobilenet-v2.py

The teacher is a frozen ViT-S with a module. Scores count by the teacher's
confidence, as most places are background; features are those that the heads
read.
Expected result: not measured.
"""
_base_ = [
    '../_base_/trunks/mobilenet_v2.py',
    '../_base_/datasets/demo/tree_crowns.py',
    '../_base_/schedules/student_demo.py',
]
default_scope = 'mmdet'  # the student's own

trunk = _base_.trunk
# maps of stride 16: a crown has about 20 pixels
trunk.update(out_indices=(4, ))
# the stages behind them run and learn nothing
find_unused_parameters = True
model = dict(
    type='vim_mm.Distiller',
    student=dict(
        type='mmdet.SingleStageDetector',
        backbone=trunk,
        neck=dict(
            type='mmdet.CTResNetNeck',
            in_channels=96,
            num_deconv_filters=(96, ),
            num_deconv_kernels=(4, ),
            use_dcn=False),
        bbox_head=dict(
            type='mmdet.CenterNetUpdateHead',
            num_classes=1,
            in_channels=96,
            feat_channels=96,
            stacked_convs=2,
            strides=[8],
            regress_ranges=((0, 1e8), ),
            hm_min_radius=2,
            loss_cls=dict(
                type='mmdet.GaussianFocalLoss',
                pos_weight=0.25,
                neg_weight=0.75),
            loss_bbox=dict(type='mmdet.GIoULoss', loss_weight=2.0),
            norm_cfg=dict(type='GN', num_groups=16, requires_grad=True),
            # distances pass a ReLU: start at the size of a tree crown
            init_cfg=dict(
                type='Normal',
                layer='Conv2d',
                std=0.01,
                override=[
                    dict(
                        type='Normal',
                        name='conv_cls',
                        std=0.01,
                        bias_prob=0.01),
                    dict(type='Normal', name='conv_reg', std=0.01, bias=2.)
                ])),
        test_cfg=dict(
            nms_pre=1000,
            min_bbox_size=0,
            score_thr=0.05,
            nms=dict(type='nms', iou_threshold=0.45),
            max_per_img=100)),
    teacher=dict(
        config='configs/demo/midstream_tree-crowns_det.py',
        checkpoint='work_dirs/midstream_tree-crowns_det/epoch_3.pth'),
    criteria={
        ('logits', 'logits'):
        dict(type='vim_mm.LogitsKL', tau=1., by_confidence=True),
        ('neck', 'neck'):
        dict(
            type='vim_mm.CosineSmoothL1',
            projector=dict(type='vim_mm.MLPProjector'))
    },
    probe_size=224)

# the neck gives maps at stride 8 of what is a multiple of 32
data_preprocessor = dict(pad_size_divisor=32)
