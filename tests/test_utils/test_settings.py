# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Settings of another kind, and annotations that no library reads, end in a
sentence that names them."""

import json
import logging
from math import inf, nan
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS, LOOPS, MODELS, OPTIM_WRAPPERS, OPTIMIZERS
from mmengine.runner import Priority, Runner

from _loading import lines
from vim_mm.utils import demands, settings
from vim_mm.utils.cli import is_user_error
from vim_mm.utils.keys import check_keys

COUNTS = ('train_dataloader.batch_size', 'train_cfg.val_interval',
          'optim_wrapper.accumulative_counts',
          'default_hooks.logger.interval')
NUMBERS = ('train_dataloader.num_workers', 'train_cfg.max_iters',
           'train_cfg.max_epochs', 'train_cfg.val_begin', 'randomness.seed')
NEVER = ('default_hooks.checkpoint.interval',
         'default_hooks.checkpoint.max_keep_ckpts')
ODD = ('3', 2.5, nan, inf, True, [1], -2)


def config(**more: Any) -> Config:
    cfg = Config(
        dict(
            train_dataloader=dict(batch_size=1, num_workers=0, dataset={}),
            train_cfg=dict(max_iters=3, val_interval=1),
            randomness=dict(seed=3),
            work_dir='x',
            resume='auto',
            log_level='INFO',
            custom_hooks=[dict(type='EMAHook')],
            param_scheduler=dict(type='LinearLR'),
            optim_wrapper=dict(clip_grad=dict(max_norm=inf)),
            default_hooks=dict(checkpoint=dict(interval=-1))))
    cfg.merge_from_dict(more)
    return cfg


@pytest.mark.parametrize('key', [*COUNTS, *NUMBERS, *NEVER])
def test_counts(key: str) -> None:
    for value in (1, 7, None, *((0, ) if key in NUMBERS else ()),
                  *((-1, ) if key in NEVER else ())):
        check_keys(config(**{key: value}))
    for value in (*ODD, *(() if key in NEVER else (-1, )),
                  *(() if key in NUMBERS else (0, ))):
        with pytest.raises(ValueError, match=f'`{key}` is .*; give a whole'):
            check_keys(config(**{key: value}))


@pytest.mark.parametrize(('key', 'value', 'words'), [
    ('randomness.seed', 2**32, 'whole number'),
    ('optim_wrapper.clip_grad.max_norm', 0, 'above 0'),
    ('optim_wrapper.clip_grad.max_norm', -1, 'above 0'),
    ('optim_wrapper.clip_grad.max_norm', nan, 'above 0'),
    ('optim_wrapper.clip_grad.max_norm', '1', 'above 0'),
    ('custom_hooks', dict(type='EMAHook'), 'a list of dicts'),
    ('custom_hooks', ['EMAHook'], 'a list of dicts'),
    ('param_scheduler', 3, 'a dict with a `type`'),
    ('param_scheduler', 'LinearLR', 'a dict with a `type`'),
    ('resume', 'iter_3.pth', '`load_from` names a checkpoint'),
    ('resume', 1.5, "True, False or 'auto'"),
    ('work_dir', 3, 'the path of a folder'),
    ('log_level', 'LOUD', 'DEBUG'),
    ('log_level', ['INFO'], 'DEBUG'),
    ('load_from', 3, 'the path of a checkpoint'),
    ('optim_wrapper.clip_grad.clip_value', -1., 'a number above 0'),
    ('log_processor.window_size', 0, 'a whole number'),
    ('log_processor.window_size', '10', 'a whole number'),
    *[('log_processor.custom_cfg', given, '`data_src`, and a `method_name`')
      for given in (dict(data_src='loss'), [dict(data_src='loss')],
                    [dict(data_src='loss', method_name='meann')],
                    [dict(method_name='mean')])],
])
def test_others(key: str, value: Any, words: str) -> None:
    cfg = config()
    with pytest.raises(ValueError, match=f'`{key}` is .*; give .*{words}'):
        cfg = config(**{key: value}) if '.' in key else Config(
            dict(cfg.to_dict(), **{key: value}))
        check_keys(cfg)


@pytest.mark.parametrize(('more', 'words'), [
    (dict(custom_hooks=[dict(type='EMAHook', priority='SOON')]),
     r"`custom_hooks\[0\].priority` is 'SOON'; give .*VERY_HIGH"),
    (dict(default_hooks=dict(timer=dict(type='TimerHook', priority=101))),
     '`default_hooks.timer.priority` is 101'),
    (dict(param_scheduler=dict(type='CosineAnnealingLR', T_max=0)),
     '`param_scheduler.T_max` is 0; give a whole number'),
    (dict(param_scheduler=[dict(type='MultiStepLR', milestones='a')]),
     r"`param_scheduler\[0\].milestones` is 'a'; give a list of whole"),
    (dict(param_scheduler=dict(a=[dict(type='StepLR', step_size=2.5)])),
     r'`param_scheduler.a\[0\].step_size` is 2.5'),
    (dict(val_dataloader=dict(dataset=dict(type='A', pipeline=3))),
     '`val_dataloader.dataset.pipeline` is 3; give a list of transforms'),
    (dict(val_dataloader=dict(dataset=dict(
        type='A', datasets=[dict(type='B', pipeline=[])]))),
     r'`val_dataloader.dataset.datasets\[0\].pipeline` is \[\]'),
    (dict(custom_hooks=[dict(type='vim_mm.GateLogHook', interval=0)]),
     r'`custom_hooks\[0\].interval` is 0; give a whole number, 1 or more, or'),
    (dict(custom_hooks=[dict(type='vim_mm.ScoreGatesHook', deals=0)]),
     r'`custom_hooks\[0\].deals` is 0; give a whole number, 1 or more'),
    (dict(custom_hooks=[dict(type='vim_mm.WarmHeadHook', epochs='3')]),
     r"`custom_hooks\[0\].epochs` is '3'; give a whole number, 0 or more"),
    *[(dict(model=dict(head=dict(losses=[dict(loss_weight=weight)]))),
       r'`model.head.losses\[0\].loss_weight` is .*; give a number, 0 or')
      for weight in (-1, nan, inf, True)],
    (dict(val_dataloader=dict(t=dict(dataset=dict(type='A', pipeline='x')))),
     "`val_dataloader.t.dataset.pipeline` is 'x'"),
    # numbers of the best, thresholds and shares
    *[(dict(model=dict(head=dict(topk=best))), '`model.head.topk` is .*; give')
      for best in (0, (1, 0), -1, (), '5', 2.)],
    *[(dict(val_evaluator=judge), f'`val_evaluator{where}` is .*; give')
      for where, judge in (
          ('.topk', dict(type='Accuracy', topk=0)),
          (r'\[1\].topk', [dict(type='A'), dict(type='B', topk=(1, 0))]),
          ('.cls.topk', dict(cls=dict(type='Accuracy', topk=()))),
          ('.thrs', dict(type='Accuracy', thrs=2.)),
          ('.thrs', dict(type='Accuracy', thrs=[None, 1.5])),
          ('.iou_thrs', dict(type='CocoMetric', iou_thrs='0.5')),
          ('.iou_thrs', dict(type='VOCMetric', iou_thrs=2.)))],
    *[(dict(model=dict(a=dict(test_cfg=given))),
       rf'`model.a.test_cfg.{where}` is .*; give')
      for where, given in (
          ('score_thr', dict(score_thr=1.5)), ('nms_pre', dict(nms_pre=0)),
          ('max_per_img', dict(max_per_img='9')),
          ('nms.iou_threshold', dict(nms=dict(type='nms', iou_threshold=50))),
          ('stride', dict(mode='slide', crop_size=(8, 8), stride=4)),
          ('crop_size', dict(mode='slide', crop_size=(0, 8), stride=(4, 4))))],
    (dict(model=dict(test_cfg=dict(mode='slide', stride=(4, 4)))),
     "mode` is 'slide', and there is no `model.test_cfg.crop_size`"),
    (dict(model=dict(test_cfg=dict(
        mode='slide', crop_size=(8, 8), stride=(8, 9)))),
     r'stride` is \[?\(?8, 9.*more than .* pixels between'),
    *[(dict(model=dict(part=part)), rf'`model.part.{key}` is .*; give {words}')
      for key, part, words in (
          ('class_weight', dict(class_weight=[-1., 1.]), 'numbers of 0'),
          ('dropout_ratio', dict(dropout_ratio=1), 'a number below 1'),
          ('drop_rate', dict(drop_rate=-1), 'a number from 0'),
          ('drop_path_rate', dict(drop_path_rate=1.), 'a number from 0'),
          ('seg_pad_val', dict(seg_pad_val='x'), 'a number'),
          ('type', dict(type=['A']), 'the name of a class'),
          ('alpha', dict(type='mmdet.FocalLoss', alpha=2.), 'a number from'))],
    *[(dict(val_dataloader=dict(dataset=dict(type='A', **given))),
       rf'`val_dataloader.dataset.{key}` is .*; give')
      for key, given in (('pipeline', dict(pipeline=[dict(type='B'), None])),
                         ('pipeline', dict(pipeline=['B'])),
                         ('metainfo', dict(metainfo=['square'])))],
    *[(dict(val_dataloader=dict(dataset=dict(type='A', **given))),
       rf'`val_dataloader.dataset.{key}` is .*; give')
      for key, given in (
          ('times', dict(times=1.5)), ('times', dict(times='2')),
          ('oversample_thr', dict(oversample_thr=nan)),
          ('oversample_thr', dict(oversample_thr=-.1)),
          (r'pipeline\[0\].prob', dict(pipeline=[dict(type='B', prob=50)])))],
    # heads by a sigmoid, and masks, know no score beyond 1
    *[(dict(model=dict(part=part)), rf'`model.part.{key}` is .*; give')
      for key, part in (
          ('threshold', dict(num_classes=2, threshold=3)),
          ('mask_thr_binary', dict(mask_thr_binary=50)),
          ('thresh', dict(type='mmseg.OHEMPixelSampler', thresh=70)),
          ('thresh', dict(type='OHEMPixelSampler', thresh=nan)),
          ('min_kept', dict(type='OHEMPixelSampler', min_kept=0)))],
    # several sources
    (dict(train_dataloader=dict(dataset={}, batch_size=4,
                                sampler=dict(batch_size=8))),
     'batch_size` is 4, and that of its sampler 8: batches would not'),
    (dict(val_dataloader=dict(dataset={}, drop_last='False')),
     "`val_dataloader.drop_last` is 'False'; give True or False"),
    *[(dict(custom_hooks=[dict(type='EarlyStoppingHook', **{key: value})]),
       rf'`custom_hooks\[0\].{key}` is .*; give')
      for key, value in (('patience', 0), ('patience', '3'),
                         ('min_delta', 'a'))],
    *[(dict(param_scheduler=dict(type='StepLR', gamma=gamma)),
       '`param_scheduler.gamma` is .*; give a number above 0')
      for gamma in (0, -1., nan, '0.1')],
])
def test_parts(more: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_keys(Config(dict(config().to_dict(), **more)))


@pytest.mark.parametrize('level, more, told', [
    (11, {}, 1), (-1, {}, 1), (9, {}, 0), (11, dict(total_level=30), 0)])
def test_strength_of_augmentation(level: int, more: dict, told: int,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    said = lines(monkeypatch, settings)
    step = dict(type='RandAugment', magnitude_level=level, **more)
    check_keys(Config(dict(config().to_dict(), train_dataloader=dict(
        dataset=dict(type='A', pipeline=[step])))))
    assert len(said) == told
    assert all(rf'pipeline[0].magnitude_level` is {level}' in x for x in said)


def test_priorities_are_those_of_mmengine() -> None:
    assert tuple(Priority.__members__) == demands._PRIORITIES


@pytest.mark.parametrize('more', [
    # of usage, in percent
    dict(model=dict(backbone=dict(type='vim_mm.load_moe', threshold=3))),
    dict(model=dict(part=dict(mask_thr_binary=-1, num_classes=1,
                              threshold=.3))),
    dict(model=dict(part=dict(type='OHEMPixelSampler', thresh=None))),
    dict(train_dataloader=dict(batch_size=4, sampler=dict(
        batch_size=4, source_ratio=[1, 3]))),
    dict(train_dataloader=dict(dataset=dict(
        type='A', times=3, oversample_thr=1e-3,
        pipeline=[dict(type='B', prob=[.3, .5])]))),
])
def test_what_is_meant(more: dict) -> None:
    check_keys(config(**more))


@pytest.mark.parametrize('ratio', [[1, 3], [3, 1], [1, 1, 2]])
def test_sources_without_a_share_of_a_batch(
        ratio: list, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(train_dataloader=dict(batch_size=4, sampler=dict(
        batch_size=4, source_ratio=ratio)))
    check_keys(cfg)
    monkeypatch.setattr(settings, '_LEAST', 2)
    with pytest.raises(ValueError, match='of 4 images some source has none'):
        check_keys(cfg)


def test_parts_that_are_as_they_should_be() -> None:
    check_keys(Config(dict(
        model=dict(
            head=dict(loss=dict(loss_weight=0.), two=dict(
                loss_weight=[1., 2.]), topk=(1, 5), class_weight='w.npy'),
            bbox_head=dict(type='GaussianFocalLoss', alpha=2., topk=9,
                           loss=dict(type='FocalLoss', alpha=[.3, 1.])),
            test_cfg=dict(mode='slide', crop_size=(8, 8), stride=[8, 4],
                          score_thr=0., max_per_img=-1,
                          nms=dict(type='nms', iou_threshold=1.))),
        val_evaluator=[dict(type='Accuracy', topk=1, thrs=[None, 0., .9])],
        log_processor=dict(window_size=1, custom_cfg=[dict(
            data_src='loss', method_name='mean', window_size='epoch')]),
        custom_hooks=[dict(type='EMAHook', priority='very_high', interval=-1),
                      dict(type='EMAHook', priority=0)],
        param_scheduler=[dict(type='MultiStepLR', milestones=[3, 5]),
                         dict(type='CosineAnnealingLR', T_max=3)],
        val_dataloader=dict(dataset=dict(
            type='A', dataset=dict(type='B', pipeline=[dict(type='C')]))))))


@pytest.mark.parametrize('given', [
    'pseudo_collate', 3, dict(type='colate'), dict(type=3), dict()])
def test_what_is_no_collate_fn(given: Any) -> None:
    with pytest.raises(ValueError, match='`collate_fn` is .*; give a func'):
        Runner.build_dataloader(dict(
            batch_size=1, dataset=[1], collate_fn=given))


def test_loaders_of_each_task_and_what_is_as_it_should_be() -> None:
    check_keys(config(log_level=logging.INFO, resume=True))
    check_keys(Config(dict(work_dir=Path('x'), custom_hooks=())))
    loaders = dict(a=dict(batch_size=1), b=dict(batch_size=0), c=None)
    with pytest.raises(ValueError, match='`val_dataloader.b.batch_size` is 0'):
        check_keys(Config(dict(val_dataloader=loaders)))


def param() -> list:
    return [torch.nn.Parameter(torch.ones(2))]


@pytest.mark.parametrize(('build', 'words'), [
    (lambda: OPTIMIZERS.build(
        dict(type='AdamW', params=param(), betas=(2., .9))),
     'AdamW cannot be built as the config says: Invalid beta'),
    (lambda: OPTIMIZERS.build(dict(type='SGD', params=param(), momentum=-1)),
     'SGD cannot be built as the config says: Invalid momentum'),
    (lambda: OPTIM_WRAPPERS.build(
        dict(type='OptimWrapper', optimizer=torch.optim.SGD(param(), .1),
             accumulative_counts=0)), 'OptimWrapper cannot be built'),
    (lambda: MODELS.build(
        dict(type='ExponentialMovingAverage', model=torch.nn.Linear(1, 1),
             momentum=7)), 'momentum must be in range'),
    (lambda: HOOKS.build(dict(type='EarlyStoppingHook', monitor='x',
                              rule='most')), 'EarlyStoppingHook cannot be'),
    (lambda: LOOPS.build(
        dict(type='IterBasedTrainLoop', runner=None,
             dataloader=torch.utils.data.DataLoader([1]), max_iters='a')),
     'IterBasedTrainLoop cannot be built'),
])
def test_a_constructor_that_refuses_its_settings(build: Any,
                                                 words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        build()
    assert is_user_error(caught.value) and '\n' not in str(caught.value)


# ------------------------------------------------------------- annotations


def coco() -> dict:
    return dict(
        images=[dict(id=0, file_name='0.png', height=9, width=9)],
        annotations=[
            dict(id=0, image_id=0, category_id=3, bbox=[1, 1, 5, 5], area=25,
                 iscrowd=0)
        ],
        categories=[dict(id=3, name='square')])


def without(part: str, key: str) -> bytes:
    content = coco()
    del content[part][0][key]
    return json.dumps(content).encode()


def changed(part: str, key: str, value: Any) -> bytes:
    content = coco()
    content[part][0][key] = value
    return json.dumps(content).encode()


CONTENTS: Dict[str, bytes] = dict(
    cut=b'{"images": [',
    list=b'[]',
    number=b'3',
    empty=b'{}',
    bytes=b'\0\0\0',
    deep=b'[' * 9000,
    **{f'{part} without {key}': without(part, key)
       for part, keys in dict(
           images=('id', 'file_name', 'width'),
           annotations=('id', 'image_id', 'category_id', 'bbox', 'area'),
           categories=('id', 'name')).items() for key in keys},
    **{f'{key}={value!r}': changed(part, key, value)
       for part, key, value in (
           ('annotations', 'bbox', [1, 2, 3]), ('annotations', 'bbox', None),
           ('annotations', 'bbox', 'x'),
           ('annotations', 'bbox', ['1', '2', '3', '4']),
           ('annotations', 'area', 'a'), ('annotations', 'category_id', [3]),
           ('images', 'width', '9'), ('images', 'file_name', 3))})


@pytest.mark.parametrize('what', CONTENTS)
def test_annotations_that_no_library_reads(what: str, tmp_path: Path) -> None:
    (tmp_path / 'ann.json').write_bytes(CONTENTS[what])
    loader = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='mmdet.CocoDataset',
            data_root=str(tmp_path),
            ann_file='ann.json',
            metainfo=dict(classes=('square', )),
            pipeline=[]))
    with pytest.raises(ValueError, match='ann.json') as caught:
        Runner.build_dataloader(loader)
    assert is_user_error(caught.value)
    said = str(caught.value)
    assert said.startswith(('The annotations of CocoDataset(data_root=',
                            'The box '))
    assert '\n' not in said and len(said) < 1000
