# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A project of one's own: a few images, and a config that inherits ours.

It lies outside the repository and names the types of its library without a
prefix, as the default scope allows.
"""

import json
from pathlib import Path
from typing import List

import cv2
import numpy as np

from _tiny import SIZE, save_trunk

CLASSES = ('red', 'blue')
NUM = 4

#: What each kind of data set and its pipeline are called in its library.
DATA = dict(
    cls="""
default_scope = 'mmpretrain'
data_preprocessor = dict(
    type='ClsDataPreprocessor', num_classes=2, mean=[60.] * 3, std=[60.] * 3)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
dataset = dict(
    type='CustomDataset', data_root='data', data_prefix='cls',
    pipeline=pipeline)
val_evaluator = dict(type='Accuracy', topk=(1, ))
model = dict(head=dict(num_classes=2))
""",
    det="""
default_scope = 'mmdet'
data_preprocessor = dict(
    type='DetDataPreprocessor', mean=[60.] * 3, std=[60.] * 3,
    pad_size_divisor=14)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(56, 56), keep_ratio=True),
    dict(type='PackDetInputs')]
dataset = dict(
    type='CocoDataset', data_root='data', ann_file='det.json',
    metainfo=dict(classes=('red', 'blue')),
    data_prefix=dict(img='img'), pipeline=pipeline)
val_evaluator = dict(
    type='CocoMetric', ann_file='data/det.json', metric='bbox')
model = dict(bbox_head=dict(num_classes=2))
""",
    seg="""
default_scope = 'mmseg'
data_preprocessor = dict(
    type='SegDataPreProcessor', mean=[60.] * 3, std=[60.] * 3, size=(56, 56))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')]
dataset = dict(
    type='BaseSegDataset', data_root='data', img_suffix='.png',
    metainfo=dict(classes=('red', 'blue'), palette=[[255, 0, 0], [0, 0, 255]]),
    data_prefix=dict(img_path='img', seg_map_path='maps'),
    pipeline=pipeline)
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
model = dict(decode_head=dict(
    num_classes=2, loss_decode=dict(class_weight=None)))
""")
CONFIG = """
_base_ = [
    'vim_mm::_base_/models/demo_{kind}.py',
    'vim_mm::_base_/schedules/demo_downstream.py',
    'vim_mm::_base_/default_runtime.py',
]
{data}
model.update(backbone=dict(
    _delete_=True, type='vim_mm.ViMBackbone', new_module='n', probe_size=56,
    trunk={trunk}))
train_dataloader = dict(
    batch_size=2, num_workers=0, dataset=dataset,
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=2, num_workers=0, dataset=dict(dataset, test_mode=True),
    sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1, val_interval=1)
work_dir = 'out'
"""


def write_project(folder: Path, kind: str, more: str = '') -> Path:
    """Write images, annotations and a config into a folder.

    Args:
        folder (Path): The folder, which the run is to be started in.
        kind (str): 'cls', 'det' or 'seg'.
        more (str): Lines at the end of the config.

    Returns:
        Path: The config.
    """
    _write_images(folder / 'data')
    outs = dict(out_type='raw') if kind == 'cls' else {}
    trunk = save_trunk(folder / 'trunk.pth', **outs)
    path = folder / f'mine_{kind}.py'
    path.write_text(
        CONFIG.format(kind=kind, data=DATA[kind], trunk=repr(trunk)) + more)
    return path


def _write_images(data: Path) -> None:
    for name in ('img', 'maps', *(f'cls/{name}' for name in CLASSES)):
        (data / name).mkdir(parents=True)
    images: List[dict] = []
    boxes: List[dict] = []
    for index in range(NUM):
        label, half = index % 2, SIZE // 2
        image = np.full((SIZE, SIZE, 3), 40, np.uint8)
        image[:half, :half, 2 - 2 * label] = 250
        seg_map = np.zeros((SIZE, SIZE), np.uint8)
        seg_map[:half, :half] = label
        name = f'{index}.png'
        cv2.imwrite(str(data / 'img' / name), image)
        cv2.imwrite(str(data / 'cls' / CLASSES[label] / name), image)
        cv2.imwrite(str(data / 'maps' / name), seg_map)
        images.append(dict(id=index, file_name=name, width=SIZE, height=SIZE))
        boxes.append(
            dict(
                id=index,
                image_id=index,
                category_id=label + 5,
                bbox=[0, 0, half, half],
                area=half * half,
                iscrowd=0))
    categories = [dict(id=i + 5, name=name) for i, name in enumerate(CLASSES)]
    (data / 'det.json').write_text(
        json.dumps(
            dict(images=images, annotations=boxes, categories=categories)))
