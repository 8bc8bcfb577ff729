# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# COCO 2017, 80 things and 53 stuff as one label map, 255 for none, at 196 px:
# the first 100 training and 100 validation images that have such a map, from
# lightly-ai/coco128_yolo. Annotations CC BY 4.0; some photographs are
# non-commercial. The classes are those of mmdet's CocoPanopticDataset.
dataset_type = 'mmseg.BaseSegDataset'
data_root = '{{$VIM_MM_DATA:data}}/coco/'
metainfo = dict(
    classes=('person', 'bicycle', 'car', 'motorcycle', 'airplane', 'bus',
             'train', 'truck', 'boat', 'traffic light', 'fire hydrant',
             'stop sign', 'parking meter', 'bench', 'bird', 'cat', 'dog',
             'horse', 'sheep', 'cow', 'elephant', 'bear', 'zebra', 'giraffe',
             'backpack', 'umbrella', 'handbag', 'tie', 'suitcase', 'frisbee',
             'skis', 'snowboard', 'sports ball', 'kite', 'baseball bat',
             'baseball glove', 'skateboard', 'surfboard', 'tennis racket',
             'bottle', 'wine glass', 'cup', 'fork', 'knife', 'spoon', 'bowl',
             'banana', 'apple', 'sandwich', 'orange', 'broccoli', 'carrot',
             'hot dog', 'pizza', 'donut', 'cake', 'chair', 'couch',
             'potted plant', 'bed', 'dining table', 'toilet', 'tv', 'laptop',
             'mouse', 'remote', 'keyboard', 'cell phone', 'microwave', 'oven',
             'toaster', 'sink', 'refrigerator', 'book', 'clock', 'vase',
             'scissors', 'teddy bear', 'hair drier', 'toothbrush', 'banner',
             'blanket', 'bridge', 'cardboard', 'counter', 'curtain',
             'door-stuff', 'floor-wood', 'flower', 'fruit', 'gravel', 'house',
             'light', 'mirror-stuff', 'net', 'pillow', 'platform',
             'playingfield', 'railroad', 'river', 'road', 'roof', 'sand',
             'sea', 'shelf', 'snow', 'stairs', 'tent', 'towel', 'wall-brick',
             'wall-stone', 'wall-tile', 'wall-wood', 'water-other',
             'window-blind', 'window-other', 'tree-merged', 'fence-merged',
             'ceiling-merged', 'sky-other-merged', 'cabinet-merged',
             'table-merged', 'floor-other-merged', 'pavement-merged',
             'mountain-merged', 'grass-merged', 'dirt-merged', 'paper-merged',
             'food-other-merged', 'building-other-merged', 'rock-merged',
             'wall-other-merged', 'rug-merged'))
scale = (196, 196)  # multiples of the patches of 14 px

data_preprocessor = dict(
    type='mmseg.SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    size=scale,
    pad_val=0,
    seg_pad_val=255,
    test_cfg=dict(size_divisor=14))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmseg.LoadAnnotations'),
    dict(type='mmseg.Resize', scale=scale, keep_ratio=True),
    dict(type='mmseg.RandomFlip', prob=0.5),
    dict(type='mmseg.PackSegInputs')
]
# predictions are resized to the labels, not the labels
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmseg.Resize', scale=scale, keep_ratio=True),
    dict(type='mmseg.LoadAnnotations'),
    dict(type='mmseg.PackSegInputs')
]

train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        data_prefix=dict(
            img_path='train2017', seg_map_path='semantic/train2017'),
        indices=100,  # the others have no map
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,  # images of unlike sizes do not stack
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        data_prefix=dict(img_path='val2017', seg_map_path='semantic/val2017'),
        indices=100,
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='mmseg.IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
