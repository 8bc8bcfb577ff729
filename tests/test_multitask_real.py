# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The libraries' own data sets and augmentations, through the tools."""

import json
import os
import runpy
from pathlib import Path
from typing import Dict

import pytest
import torch

from _multitask import convnext, multitask_cfg
from _tiny import same

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get('VIM_MM_DATA', ROOT / 'data'))
SETS = ['clothing', 'coco', 'camvid']

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all((DATA / name).is_dir() for name in SETS),
        reason=f'Set VIM_MM_DATA to a folder with {", ".join(SETS)}.')
]

CONFIG = '''
default_scope = 'vim_mm'
model = {model}
shuffled = dict(type='DefaultSampler', shuffle=True)
ordered = dict(type='DefaultSampler', shuffle=False)
load = dict(type='LoadImageFromFile')
classes = ('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign',
           'fence', 'car', 'pedestrian', 'bicyclist')


def cls(split, *pipeline, **kwargs):
    return dict(batch_size=8, num_workers=2, dataset=dict(
        type='CustomDataset', data_root='{data}/clothing', data_prefix=split,
        indices=48,
        pipeline=[load, *pipeline, dict(type='PackInputs')]), **kwargs)


def det(split, *pipeline, **kwargs):
    return dict(batch_size=2, num_workers=0, dataset=dict(
        type='CocoDataset', data_root='{data}/coco',
        ann_file=f'annotations/boxes_{{split}}2017.json',
        data_prefix=dict(img=f'{{split}}2017/'), indices=16,
        pipeline=[load, *pipeline, dict(type='PackDetInputs', meta_keys=(
                      'img_id', 'img_path', 'ori_shape', 'img_shape',
                      'scale_factor'))]), **kwargs)


def seg(split, *pipeline, **kwargs):
    return dict(batch_size=2, num_workers=1, dataset=dict(
        type='BaseSegDataset', data_root='{data}/camvid',
        img_suffix='.jpg', seg_map_suffix='.png', indices=16,
        metainfo=dict(classes=classes),
        data_prefix=dict(img_path=f'img/{{split}}',
                         seg_map_path=f'ann/{{split}}'),
        pipeline=[load, *pipeline, dict(type='PackSegInputs')]), **kwargs)


boxes = dict(type='LoadAnnotations', with_bbox=True)
labels = dict(type='LoadAnnotations')
small = dict(type='Resize', scale=(160, 160), keep_ratio=True)
train_dataloader = dict(
    cls=cls('train', dict(type='RandomResizedCrop', scale=64),
            dict(type='RandAugment', policies='timm_increasing',
                 num_policies=2, total_level=10, magnitude_level=9),
            dict(type='RandomErasing'), sampler=shuffled,
            collate_fn=dict(type='default_collate')),
    det=det('train', boxes,
            dict(type='RandomResize', scale=[(160, 128), (200, 160)],
                 keep_ratio=True), dict(type='RandomFlip', prob=0.5),
            dict(type='PhotoMetricDistortion'), sampler=shuffled,
            batch_sampler=dict(type='AspectRatioBatchSampler')),
    seg=seg('train', labels, dict(type='RandomCrop', crop_size=(96, 96)),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PhotoMetricDistortion'), sampler=shuffled))
val_dataloader = dict(
    cls=cls('val', dict(type='Resize', scale=(64, 64)), sampler=ordered),
    det=det('val', small, boxes, sampler=ordered),
    seg=seg('val', small, labels, sampler=ordered))
test_dataloader = val_dataloader
val_evaluator = dict(
    cls=dict(type='Accuracy'),
    det=dict(type='CocoMetric', metric='bbox', classwise=True,
             ann_file='{data}/coco/annotations/boxes_val2017.json'),
    seg=dict(type='IoUMetric'))
test_evaluator = val_evaluator
train_cfg = dict(type='MultiTaskTrainLoop', max_iters=6, val_interval=6)
val_cfg = dict(type='MultiTaskValLoop')
test_cfg = dict(type='MultiTaskTestLoop')
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-4))
default_hooks = dict(checkpoint=dict(
    type='CheckpointHook', by_epoch=False, interval=3))
log_processor = dict(by_epoch=False)
randomness = dict(seed=7)
del cls, det, seg
'''


def run(monkeypatch: pytest.MonkeyPatch, tool: str, *args: object) -> None:
    monkeypatch.setattr('sys.argv', [tool, *map(str, args)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
    assert not end.value.code


def metrics(folder: Path) -> Dict[str, float]:
    path, = folder.glob('*/*.json')
    return json.loads(path.read_text())


def test_tools_train_resume_and_test(tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    model = multitask_cfg(backbone=convnext(drop_path_rate=0.3)).to_dict()
    tasks = model['tasks']
    tasks['cls']['head']['num_classes'] = 10
    tasks['cls']['data_preprocessor']['to_rgb'] = True
    tasks['det']['bbox_head']['num_classes'] = 80
    tasks['det']['data_preprocessor']['pad_size_divisor'] = 32
    tasks['seg']['decode_head']['num_classes'] = 11
    tasks['seg']['data_preprocessor']['size'] = (96, 96)
    config = tmp_path / 'run.py'
    config.write_text(CONFIG.format(model=model, data=DATA.resolve()))

    run(monkeypatch, 'train.py', config, '--work-dir', tmp_path / 'whole')
    run(monkeypatch, 'train.py', config, '--work-dir', tmp_path / 'part',
        '--resume', tmp_path / 'whole' / 'iter_3.pth')
    first, second = (
        torch.load(tmp_path / name / 'iter_6.pth', weights_only=False)
        for name in ('whole', 'part'))
    assert same(first['state_dict'], second['state_dict'])

    checkpoint = tmp_path / 'whole' / 'iter_6.pth'
    run(monkeypatch, 'test.py', config, checkpoint, '--work-dir',
        tmp_path / 'test')
    found = metrics(tmp_path / 'test')
    assert {'cls/accuracy/top1', 'seg/mIoU'} < found.keys()
    run(monkeypatch, 'test.py', config, checkpoint, '--task', 'seg',
        '--work-dir', tmp_path / 'seg')
    assert metrics(tmp_path / 'seg')['mIoU'] == found['seg/mIoU']
    run(monkeypatch, 'test.py', config, checkpoint, '--task', 'det',
        '--show-dir', tmp_path / 'drawn', '--work-dir', tmp_path / 'det')
    assert len(list((tmp_path / 'drawn').glob('*.jpg'))) == 16
