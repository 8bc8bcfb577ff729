# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Annotated images on a disk, and how the stack's own data sets read them."""

import json
from pathlib import Path
from typing import List

import cv2
import numpy as np

from _tiny import Pictures

NUM, NAMES = 5, dict(
    cls=['left', 'right'], det=['square'], seg=['ground', 'square'])
#: what a data set of each kind reads, as the stack's own classes do
PIPELINES = dict(
    cls=[dict(type='LoadImageFromFile'),
         dict(type='mmpretrain.PackInputs')],
    det=[
        dict(type='LoadImageFromFile'),
        dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='mmdet.PackDetInputs')
    ],
    seg=[
        dict(type='LoadImageFromFile'),
        dict(type='mmseg.LoadAnnotations'),
        dict(type='mmseg.PackSegInputs')
    ])


def write_guides(kind: str, root: Path) -> dict:
    """Images and annotations; returns the config of their data set."""
    boxes: List[dict] = []
    images: List[dict] = []
    for index, sample in enumerate(Pictures(kind, NUM).samples):
        image = sample['inputs'].permute(1, 2, 0).numpy()
        data = sample['data_samples']
        folder = NAMES['cls'][index % 2] if kind == 'cls' else ''
        path = root / 'images' / folder / f'{index}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
        images.append(dict(id=index, file_name=path.name, height=56, width=56))
        if kind == 'seg':
            (root / 'labels').mkdir(exist_ok=True)
            cv2.imwrite(
                str(root / 'labels' / path.name),
                data.gt_sem_seg.data[0].numpy().astype(np.uint8))
        if kind == 'det':
            left, top, right, bottom = data.gt_instances.bboxes[0].tolist()
            corners = [left, top, right, top, right, bottom, left, bottom]
            boxes.append(
                dict(
                    id=index,
                    image_id=index,
                    category_id=1,
                    iscrowd=0,
                    area=28 * 28,
                    segmentation=[corners],
                    bbox=[left, top, 28, 28]))
    if kind == 'cls':
        return dict(
            type='mmpretrain.CustomDataset',
            data_root=str(root),
            data_prefix='images',
            pipeline=PIPELINES[kind])
    own = dict(
        data_root=str(root),
        pipeline=PIPELINES[kind],
        metainfo=dict(classes=NAMES[kind]))
    if kind == 'seg':
        return dict(
            own,
            type='mmseg.BaseSegDataset',
            data_prefix=dict(img_path='images', seg_map_path='labels'),
            img_suffix='.png')
    (root / 'boxes.json').write_text(
        json.dumps(
            dict(
                images=images,
                annotations=boxes,
                categories=[dict(id=1, name='square')])))
    return dict(
        own,
        type='mmdet.CocoDataset',
        ann_file='boxes.json',
        data_prefix=dict(img='images/'))
