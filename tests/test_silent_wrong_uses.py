# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Wrong uses that libraries take without a word are told before training.

Rows are those of test_late_wrong_uses.
"""

import re
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from test_late_wrong_uses import SAVES, SHORT, STOP, run, waits
from test_wrong_uses import (DATA, LOADED, LOADER, NAMES, labels,
                             told_before_training)

from _loading import LOAD, lines
from _tiny import KINDS, SIZE
from vim_mm.engine import (batch_watch, judges, no_effect, rate_schedules,
                           schedule_checks)
from vim_mm.engine.runner import build_runner
from vim_mm.models import class_counts, pixels, strides
from vim_mm.utils.settings import check_together

ROWS = [
    # waited for, or judged by
    ('boxes judged by what there is not', 'det',
     {'val': None, 'val_evaluator.metric_items': ['mAP_5'],
      SHORT: [LOAD, dict(type='Resize', scale=(SIZE, SIZE)), *LOADED['det']]},
     'validation would fail .*KeyError, .*"mAP_5" is not supported'),
    *[(f'an optimizer of {key} {value}', 'cls',
       {f'optim_wrapper.optimizer.{key}': value}, words)
      for key, value, words in (
          ('weight_decay', 1e5, 'a step takes 100 times each weight away'),
          ('eps', 1e8, 'eps` is 100000000.0; give a number from 0 to below 1'),
          ('lr', True, 'lr` is True; give a number'),
          ('maximize', True, 'losses would be made larger'))],
    *[(f'misspelt setting of saving, {key}', 'cls', waits(**{key: 1}),
       f'CheckpointHook takes no {key}; perhaps {meant} is meant')
      for key, meant in (('save_bests', 'save_best'),
                         ('max_keep_ckpt', 'max_keep_ckpts'))],
    ('means from 0 to 1', 'cls',
     {'model.data_preprocessor.mean': [.485, .456, .406],
      'model.data_preprocessor.std': [.229, .224, .225]},
     'means of up to 0.485, as of pixels from 0 to 1, .* by 255'),
    *[(f'images padded to {size}', 'seg',
       {'model.data_preprocessor.size': size},
       rf'size` is \({size[0]}, .* has \(56, 56\), as the pipeline gives')
      for size in ((28, 28), (56, 28))],
    ('padded by both', 'seg', {'model.data_preprocessor.size_divisor': 14},
     'only one of size and size_divisor'),
    ('padded by neither', 'seg', {'model.data_preprocessor.size': None},
     'only one of size and size_divisor'),
    # numbers that are none
    *[(f'a hook with {setting}', 'cls', dict(custom_hooks=[dict(
        type='vim_mm.WarmHeadHook', epochs=1, **setting)]), words)
      for setting, words in (
          (dict(views=0), r'views` is 0; give a whole number'),
          (dict(clip_grad=0), r'clip_grad` is 0; give a number above 0'),
          (dict(clip_grad=-1), r'clip_grad` is -1; give a number above 0'),
          (dict(optimizer=dict(type='AdamW', lr=0.)), 'an `lr` above 0'))],
    *[(f'rates scaled by {size}', 'cls',
       dict(auto_scale_lr=dict(enable=True, base_batch_size=size)),
       f'base_batch_size` is {size}; give a whole number')
      for size in (-16, 0)],
    ('rates that are scaled', 'cls', dict(auto_scale_lr=True),
     'auto_scale_lr` is True; give a dict'),
    ('a focus below 0', 'det',
     {'model.bbox_head.loss_cls': dict(
         type='FocalLoss', use_sigmoid=True, gamma=-2.)},
     'loss_cls.gamma` is -2.0; give a number, 0 or more'),
    *[(f'{key} {value}', 'det',
       {'model.train_cfg': dict(assigner=dict(
           type='MaxIoUAssigner', **{key: value}))}, words)
      for key, value, words in (
          ('pos_iou_thr', 50, 'pos_iou_thr` is 50; give a number from 0 to 1'),
          ('min_pos_iou', 1.1, 'min_pos_iou` is 1.1; give a number from 0'),
          ('neg_iou_thr', 0., 'neg_iou_thr` is 0.0; give a number above 0'),
          ('neg_iou_thr', -1., 'neg_iou_thr` is -1.0; give a number above'))],
    ('maps that are written nowhere', 'seg',
     {'val': None, 'val_evaluator.format_only': True},
     'val_evaluator.format_only` is True, and it has no `output_dir`'),
    *[(f'{hook} on a plain backbone', 'cls', {
        'model.backbone': dict(_delete_=True, type='mmpretrain.ResNet',
                               depth=18),
        'model.neck': dict(_delete_=True, type='GlobalAveragePooling'),
        'model.head.in_channels': 512,
        'custom_hooks': [dict(type=f'vim_mm.{hook}')]},
       'The backbone is a ResNet, which weighs no modules')
      for hook in ('ScoreGatesHook', 'HoldOutGatesHook', 'BetterGatesHook')],
    ('a misspelt key of processes', 'cls', dict(find_unused_parameter=True),
     'find_unused_parameter`; perhaps `find_unused_parameters` is meant'),
    *[(f'anchors of {key} {value}', 'det',
       {'model.bbox_head.anchor_generator': {key: value}},
       rf'anchor_generator.{key}` is .*; give numbers above 0')
      for key, value in (('ratios', [1., 0.]), ('ratios', [[2], [-2, 3]]),
                         ('scales', [0]), ('octave_base_scale', -4),
                         ('base_sizes', [[8, 0], [16, 16]]))],
    *[('boxes larger than images', 'det',
       {f'model.{key}': dict(min_bbox_size=size)},
       rf'`model.{key}.min_bbox_size` is {size}, and no image .* than 56 px')
      for key, size in (('test_cfg', 56), ('train_cfg.rpn_proposal', 900))],
    ('a loss of scores for labels', 'cls',
     {'model.head.loss': dict(type='CrossEntropyLoss', use_soft=True)},
     'head.loss.use_soft` is True, a loss of scores, and the image .* alone'),
    ('a threshold that no score reaches', 'seg',
     {'model.decode_head.threshold': 5.}, 'threshold` is 5.0; give a number'),
    ('a loss that nobody adds', 'seg',
     {'model.decode_head.loss_decode': dict(
         type='CrossEntropyLoss', loss_name='ce')},
     "loss_name` is 'ce'; give a name with 'loss' in it"),
    *[(f'a cycle of {steps} steps', 'cls', dict(param_scheduler=dict(
        type='OneCycleLR', by_epoch=False, eta_max=.1, total_steps=steps)),
       f'OneCycleLR of {steps} steps .* asks it for 3') for steps in (1, 2)],
    *[(f'maps of {width}x{height} px, all brought to one size', 'seg',
       {**{f'seg/ann/{i}.png': labels(1, width, height) for i in range(4)},
        f'{DATA}.pipeline': [
            LOAD, dict(type='LoadAnnotations'),
            dict(type='Resize', scale=(SIZE, SIZE), keep_ratio=False),
            dict(type='PackSegInputs')]},
       f'has 56 x 56 px, and its label map .* {width} x {height} ')
      for width, height in ((28, 28), (56, 28))],
    ('vectors for a neck that pools', 'cls',
     {'model.backbone.trunk.out_type': 'cls_token',
      'model.neck': dict(_delete_=True, type='GlobalAveragePooling')},
     'GlobalAveragePooling does not take .* no maps .* take the neck out'),
    # places
    *[(f'a stride of {given}', 'det', {'model.bbox_head.strides': given},
       words) for given, words in (
           ([7], 'has a stride of 7, and a place of that level stands for 14'),
           ([28], 'has a stride of 28'),
           ([14, 28], 'has 2 strides, and .* gives 1 levels'))],
    ('a layer that there is not', 'cls',
     {'model.head.init_cfg': dict(type='Normal', layer='Lienar', std=1.)},
     "`init_cfg` of `model.head` is for layers 'Lienar', .* 'Linear' is"),
]


@pytest.mark.parametrize(('kind', 'change', 'words'), [
    pytest.param(*row, id=f'{name} ({row[0]})') for name, *row in ROWS])
def test_it_is_told(kind: str, change: dict, words: str,
                    tmp_path: Path) -> None:
    with told_before_training(words, tmp_path):
        run(kind, change, tmp_path)


@pytest.mark.parametrize(('change', 'words'), [
    *[({'val': None, **SAVES, **change},
       f"{name} waits for the metric 'accuracy/top1' by rule='less': if more "
       ".* set rule='greater'") for name, change in (
           ('CheckpointHook.save_best', waits(
               save_best='accuracy/top1', rule='less')),
           ('EarlyStoppingHook.monitor', dict(custom_hooks=[dict(
               STOP['custom_hooks'][0], monitor='accuracy/top1',
               rule='less')])),
           # by default
           ('ReduceOnPlateauLR', dict(param_scheduler=dict(
               type='ReduceOnPlateauLR', monitor='accuracy/top1'))))],
    ({'val': None, **waits(save_best='accuracy/top1')}, None),
    *[(dict(param_scheduler=dict(by_epoch=False, **given), **SAVES), words)
      for given, words in (
          (dict(type='LinearLR', begin=50, end=60), 'begins at 50, .* never'),
          (dict(type='LinearLR', start_factor=.1), 'warms up for the whole'),
          (dict(type='LinearLR', start_factor=.1, end=2), None),
          (dict(type='LinearLR', start_factor=1., end_factor=0., end=1),
           'nothing is learned from there on'),
          (dict(type='PolyLR', end=1, eta_min=0.), 'is 0 from 1 on, .* 3'),
          (dict(type='PolyLR', end=1, eta_min=1e-5), None),
          (dict(type='CosineAnnealingLR', T_max=1, end=1, eta_min_ratio=0.),
           'CosineAnnealingLR whose rate is 0 from 1 on'),
          (dict(type='OneCycleLR', eta_max=.1, total_steps=90),
           'goes on until 90'),
          (dict(type='OneCycleLR', eta_max=.1, total_steps=3), None),
          (dict(type='LinearLR', start_factor=1., end_factor=0., end=3), None),
          # as cycles begin
          (dict(type='CosineAnnealingLR', T_max=3, eta_min=.01),
           '`eta_min` of CosineAnnealingLR is 0.01, more than the 0.001'),
          (dict(type='CosineAnnealingMomentum', T_max=3, eta_min=.95), None),
          (dict(type='StepLR', step_size=1, gamma=10.), 'they grow'))],
    *[(dict(SAVES, param_scheduler=dict(
        type='OneCycleLR', by_epoch=False, total_steps=3, eta_max=rates),
            **{'optim_wrapper.paramwise_cfg': factors}), words)
      for rates, factors, words in (
          (.1, dict(custom_keys=dict(head=dict(lr_mult=.1))),
           r"gives all .* `paramwise_cfg.custom_keys\['head'\].lr_mult` ch"),
          (.1, dict(bias_lr_mult=2.), '`paramwise_cfg.bias_lr_mult` changes'),
          (.1, dict(custom_keys=dict(head=dict(lr_mult=1.))), None))],
    (dict(SAVES, **{'optim_wrapper.accumulative_counts': 9}),
     'weights change once'),
    (dict(SAVES, custom_hooks=[dict(
        type='mmpretrain.SwitchRecipeHook',
        schedule=[dict(action_epoch=9, loss=dict(
            type='CrossEntropyLoss'))])]), 'acts in epoch 9, .* never does'),
])
def test_schedules(change: dict, words: Any, tmp_path: Path,
                   monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, rate_schedules, schedule_checks)
    assert run('cls', change, tmp_path).iter == 3
    assert len(told) == (words is not None), told
    assert words is None or re.search(words, told[0]), told


SLIDE = {'model.test_cfg': dict(mode='slide', stride=(14, 14),
                                crop_size=(28, 28))}


@pytest.mark.parametrize(('kind', 'change', 'words'), [
    ('seg', {'model.data_preprocessor.size': (560, 560)}, 'most .* padding'),
    ('seg', {'model.data_preprocessor.seg_pad_val': 0},
     'is 0, and the head ignores 255, so padding is learned'),
    ('seg', {'model.data_preprocessor.size': None,
             'model.data_preprocessor.size_divisor': 13},
     r'`data_preprocessor.size_divisor` is 13, .* multiple of 14'),
    ('det', {'model.data_preprocessor.pad_size_divisor': 32},
     'pad_size_divisor` is 32, .* multiple of 14'),
    ('seg', SLIDE, r'crop_size` is \(28, 28\), .* \(56, 56\): it is tested'),
    ('seg', {f'{DATA}.metainfo': None},
     r'names no classes, .* with the 2 of `model.decode_head`'),
    ('seg', {'val': None, 'val_evaluator.ignore_index': 0},
     "ignore_index` is 0, so 'ground' counts for nothing"),
    ('det', {'model.bbox_head.loss_bbox': dict(
        type='IoULoss', loss_weight=0.)}, 'bbox_head.loss_bbox` of `loss_we'),
    ('cls', {f'{LOADER}.sampler.shuffle': False}, 'does not shuffle'),
    # a label map, and an image divided by 255, in the place of an image
    *((kind, {path.format(i, NAMES['cls'][i % 2]): labels(value)
              for i in range(4)},
       f'No pixel of a batch is above {value}, .* images are black')
      for kind, path, value in (
          ('cls', 'cls/{1}/{0}.png', 1), ('det', 'det/{0}.png', 0),
          ('seg', 'seg/img/{0}.png', 9))),
    *((kind, {f'model.{loss}': dict(type='CrossEntropyLoss',
                                    class_weight=[0., 1.])},
       r'class_weight` is 0 for the classes \[0\]: nothing is learned of them')
      for kind, loss in (('cls', 'head.loss'),
                         ('seg', 'decode_head.loss_decode'))),
    # mixed labels are scores
    ('cls', {'model.head.loss': dict(type='CrossEntropyLoss', use_soft=True),
             'model.data_preprocessor.num_classes': 2,
             'model.train_cfg': dict(augments=[
                 dict(type='Mixup', alpha=.2)])}, None),
    *((kind, {}, None) for kind in KINDS),
])
def test_what_would_do_harm(kind: str, change: dict, words: Any,
                            tmp_path: Path,
                            monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, batch_watch, class_counts, judges, no_effect,
                 pixels, strides)
    run(kind, change, tmp_path)
    assert len(told) == (words is not None), told
    assert words is None or re.search(words, told[0]), told


@pytest.mark.parametrize(('given', 'words'), [
    (dict(work_dir='x'), 'no `model`'), (dict(model=None), 'no `model`'),
    (dict(model={}, strategy=dict(type='DDPStrategy')), "'FlexibleRunner'"),
])
def test_parts_that_a_run_needs(given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_together(given)


def test_a_runner_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="perhaps 'FlexibleRunner' is meant"):
        build_runner(Config(dict(
            model={}, runner_type='FlexibleRuner', launcher='none')), ())
