# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# What ViM's release sees of an image, for segmentation: squashed to 224 x 224
# from any shape (PIL's bilinear filter), ImageNet's mean and deviation and
# not CLIP's. Data: VOC 2012, val. The release predicts only, and so do these.
dataset_type = 'mmseg.PascalVOCDataset'
data_root = 'data/VOCdevkit/VOC2012'

data_preprocessor = dict(
    type='mmseg.SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    size=(224, 224))  # what training on from here would pad to
# annotations keep their size: predictions are compared at it
test_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(
        type='mmseg.Resize',
        scale=(224, 224),
        keep_ratio=False,
        backend='pillow',
        interpolation='bilinear'),
    dict(type='mmseg.LoadAnnotations'),
    dict(type='mmseg.PackSegInputs')
]

test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(
            img_path='JPEGImages', seg_map_path='SegmentationClass'),
        ann_file='ImageSets/Segmentation/val.txt',
        pipeline=test_pipeline))
test_evaluator = dict(type='mmseg.IoUMetric', iou_metrics=['mIoU'])
