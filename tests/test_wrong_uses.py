# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Wrong uses of a run are told in a sentence before hours are spent.

A row is a name, the kind of task, what is changed in a config that trains, and
words of the sentence. A key of the change is one of the config or, with a
slash, a file of the data, which is written anew.
"""

import json
from contextlib import contextmanager
from math import inf, nan
from pathlib import Path
from typing import Any, Dict, Iterator

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from _tiny import KINDS, SCOPES, SIZE, fusion_neck, model_cfg, vit
from vim_mm.utils.cli import is_user_error

NAMES = dict(cls=['dark', 'light'], det=['square'], seg=['ground', 'square'])
LOADED = dict(
    cls=[dict(type='PackInputs')],
    det=[
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackDetInputs')
    ],
    seg=[dict(type='LoadAnnotations'), dict(type='PackSegInputs')])
HEAD = dict(cls='head', det='bbox_head', seg='decode_head')


def annotations(box: object = (4, 4, 30, 30), num: int = 4,
                names: tuple = ('square', )) -> str:
    found = [
        dict(id=i, image_id=i, category_id=3, bbox=box, area=900,
             iscrowd=0) for i in range(num)
    ]
    images = [
        dict(id=i, file_name=f'{i}.png', height=SIZE, width=SIZE)
        for i in range(num)
    ]
    return json.dumps(
        dict(images=images, annotations=found,
             categories=[dict(id=3 + i, name=n) for i, n in enumerate(names)]))


def image(value: int, size: int = SIZE, channels: int = 3) -> bytes:
    pixels = np.full((size, size, channels), value, np.uint8)
    pixels[4:30, 4:30] = 255 - pixels[4:30, 4:30] if channels == 3 else 1
    return cv2.imencode('.png', pixels)[1].tobytes()


def labels(value: int, width: int = SIZE, height: int = 0) -> bytes:
    pixels = np.full((height or width, width), value, np.uint8)
    return cv2.imencode('.png', pixels)[1].tobytes()


def write(folder: Path) -> None:
    files: Dict[str, Any] = {'det/ann.json': annotations()}
    for index in range(4):
        name = NAMES['cls'][index % 2]
        files[f'cls/{name}/{index}.png'] = image(index * 20)
        files[f'det/{index}.png'] = files[f'seg/img/{index}.png'] = image(40)
        files[f'seg/ann/{index}.png'] = image(0, channels=1)
    for path, content in files.items():
        put(folder / path, content)


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes)
                     else content.encode())


def config(kind: str, folder: Path) -> Config:
    """A run that trains well."""
    dataset = dict(
        cls=dict(type='CustomDataset', data_prefix='cls',
                 classes=NAMES['cls']),
        det=dict(type='CocoDataset', ann_file='det/ann.json',
                 data_prefix=dict(img='det/'),
                 metainfo=dict(classes=NAMES['det'])),
        seg=dict(type='BaseSegDataset', img_suffix='.png',
                 data_prefix=dict(img_path='seg/img', seg_map_path='seg/ann'),
                 metainfo=dict(classes=NAMES['seg'], palette=[[0] * 3] * 2)),
    )[kind]
    dataset.update(
        data_root=str(folder),
        pipeline=[dict(type='LoadImageFromFile'), *LOADED[kind]])
    backbone = dict(trunk=vit(), new_module='n')
    loader = dict(
        batch_size=2,
        num_workers=0,
        dataset=dataset,
        sampler=dict(type='InfiniteSampler', shuffle=True))
    return Config(
        dict(
            model=model_cfg(kind, backbone, fusion_neck(kind)),
            work_dir=str(folder / 'run'),
            train_dataloader=loader,
            train_cfg=dict(by_epoch=False, max_iters=3),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
            default_scope=SCOPES[kind],
            log_processor=dict(by_epoch=False),
            log_level='WARNING',
            experiment_name=str(folder)))


def train(kind: str, change: dict, folder: Path) -> Runner:
    write(folder)
    cfg, then = config(kind, folder), change.get('then')
    for key, value in change.items():
        if key == 'then':
            continue
        if '/' in key:
            put(folder / key, value)
        else:
            cfg.merge_from_dict({key: value})
    run = Runner.from_cfg(cfg)
    if then:
        then(run)
    run.train()
    return run


@contextmanager
def told_before_training(words: str, folder: Path) -> Iterator[None]:
    """Within, a run of the folder ends in one sentence, and saves nothing."""
    with pytest.raises((ValueError, OSError), match=words) as caught:
        yield
    assert '\n' not in str(caught.value)
    assert is_user_error(caught.value)
    assert not list(folder.glob('run/*.pth'))


def each(name: str, change: dict, words: str) -> list:
    return [(name, kind, change, words) for kind in KINDS]


def of_head(name: str, setting: str, value: Any, words: str) -> list:
    return [(name, kind, {f'model.{HEAD[kind]}.{setting}': value}, words)
            for kind in KINDS]


LOADER, DATA = 'train_dataloader', 'train_dataloader.dataset'
OPTIMIZER = 'optim_wrapper.optimizer'
MULTS = 'optim_wrapper.paramwise_cfg'
ZOO = dict(type='vim_mm.ModuleToZooHook', zoo='zoo', dataset='d', task='cls',
           licence='CC0-1.0')


def mult(**keys: float) -> dict:
    return {
        MULTS: dict(custom_keys={
            key.replace('__', '.'): dict(lr_mult=value)
            for key, value in keys.items()
        })
    }


ROWS = [
    # rates
    *each('rate nan', {f'{OPTIMIZER}.lr': nan}, r'optimizer.lr` is nan'),
    ('rate inf', 'cls', {f'{OPTIMIZER}.lr': inf}, r'optimizer.lr` is inf'),
    ('rate below 0', 'cls', {f'{OPTIMIZER}.lr': -1.}, r'lr` is -1.0'),
    ('rate a text', 'cls', {f'{OPTIMIZER}.lr': '1e-3'}, r"lr` is '1e-3'"),
    ('rate 0', 'cls', {f'{OPTIMIZER}.lr': 0.}, 'All learning rates are 0'),
    ('decay nan', 'cls', {f'{OPTIMIZER}.weight_decay': nan}, 'decay` is nan'),
    ('rate of the module 0', 'cls', mult(backbone__bank=0.),
     'moves nothing of `backbone.bank`'),
    ('rate of the backbone 0', 'cls', mult(backbone=0.), "'backbone' is 0"),
    ('factor nan', 'cls', mult(head=nan), r"\['head'\].lr_mult` is nan"),
    ('misspelt key of a rate', 'cls', mult(backbone__bnak=2.),
     "of no parameter; perhaps 'backbone.bank' is meant"),
    ('a schedule of rate 0', 'cls',
     dict(param_scheduler=dict(type='ConstantLR', factor=0., end=9,
                               by_epoch=False)), 'rates were 0 in each step'),
    ('a cycle of rate 0', 'cls',
     dict(param_scheduler=dict(type='OneCycleLR', eta_max=0., total_steps=9,
                               by_epoch=False)), 'All .* 0.* `eta_max`'),
    *[(f'a schedule whose {key} is {value}', 'cls',
       dict(param_scheduler=dict(type=kind, by_epoch=False, end=9, **more,
                                 **{key: value})),
       rf'param_scheduler.{key}` is {value}; give a number')
      for kind, key, value, more in (
          ('ConstantLR', 'factor', nan, {}),
          ('LinearLR', 'start_factor', inf, {}),
          ('LinearLR', 'start_factor', 0., {}),
          ('MultiStepLR', 'gamma', -1., dict(milestones=[1])),
          ('CosineAnnealingLR', 'eta_min', nan, dict(T_max=3)))],
    ('a rate that overflows', 'cls', {f'{OPTIMIZER}.lr': 1e30},
     r'The loss is (nan|inf) in iteration 2: .*no checkpoint'),
    # what learns
    ('nothing learns', 'cls',
     dict(then=lambda run: run.model.requires_grad_(False)),
     '(Nothing of the model|moves nothing|optimizer got an empty)'),
    ('the trunk learns', 'cls',
     dict(then=lambda run: run.model.backbone.trunk.requires_grad_(True)),
     'what it learns would be lost'),
    ('no iteration', 'cls',
     {'train_cfg.max_iters': 0, 'custom_hooks': [ZOO]}, 'has no iteration'),
    ('no whole batch', 'cls',
     {f'{LOADER}.sampler': dict(type='DefaultSampler', shuffle=True),
      f'{LOADER}.batch_size': 9, f'{LOADER}.drop_last': True},
     'do not fill one batch of 9'),
    # misspelt keys
    ('misspelt hooks', 'cls', dict(custom_hook=[]), '`custom_hooks` is meant'),
    ('misspelt loader', 'cls', dict(val_dataloder={}), '`val_dataloader` is'),
    ('misspelt start', 'cls', dict(load_form='x'), '`load_from` is meant'),
    ('former key', 'cls', dict(resume_from='x'), '`load_from` and `resume='),
    ('misspelt loop', 'cls', {'train_cfg.max_iter': 3},
     'IterBasedTrainLoop takes no max_iter; perhaps max_iters'),
    ('misspelt optimizer', 'cls', {f'{OPTIMIZER}.type': 'AdamWW'},
     "no type 'AdamWW' among the optimizers .* perhaps 'AdamW'"),
    ('misspelt setting of it', 'cls', {f'{OPTIMIZER}.weight_decai': 0.},
     'AdamW takes no weight_decai; perhaps weight_decay'),
    ('neither epochs nor iterations', 'cls',
     dict(train_cfg=dict(_delete_=True, max_epochs=3)),
     '`train_cfg` has neither `type` nor `by_epoch`'),
    ('misspelt epochs', 'cls',
     dict(train_cfg=dict(_delete_=True, by_epoch=True, max_epoch=3)),
     'EpochBasedTrainLoop takes no max_epoch; perhaps max_epochs'),
    ('misspelt clipping', 'cls', {'optim_wrapper.clip_gard': {}},
     'OptimWrapper takes no clip_gard; perhaps clip_grad is meant'),
    ('misspelt default hook', 'cls',
     {'default_hooks.checkpont': dict(interval=1)}, '`default_hooks.checkpo'),
    ('misspelt seed', 'cls', dict(randomness=dict(sed=1)),
     '`randomness.seed` is meant'),
    ('misspelt environment', 'cls', {'env_cfg.cudnn_benchmrak': True},
     '`env_cfg.cudnn_benchmark` is meant'),
    ('misspelt workers', 'cls', {f'{LOADER}.num_worker': 1},
     'train_dataloader.num_workers` is meant'),
    ('misspelt norm', 'cls', {'optim_wrapper.clip_grad': dict(max_nrom=1.)},
     'clip_grad.max_norm` is meant'),
    ('a name for an optimizer', 'cls',
     dict(optim_wrapper=dict(_delete_=True, optimizer='AdamW')),
     r"optim_wrapper.optimizer` is 'AdamW'; .* dict\(type='AdamW'\)"),
    ('a setting of a hook that another library has', 'cls',
     dict(custom_hooks=[dict(type='EMAHook', momentm=.1)]),
     'ExponentialMovingAverage takes no momentm; perhaps momentum'),
    ('misspelt rates', 'cls', {MULTS: dict(custom_key={})},
     'paramwise_cfg.custom_keys` is meant'),
    ('misspelt factor', 'cls',
     {MULTS: dict(custom_keys=dict(head=dict(lr_mul=2.)))},
     r"custom_keys\['head'\].lr_mult` is meant"),
    ('misspelt optimizer of a hook', 'cls',
     dict(custom_hooks=[dict(type='vim_mm.WarmHeadHook', epochs=1,
                             optimizer=dict(type='AdamW', lrr=1.))]),
     'AdamW takes no lrr; perhaps lr is meant'),
    ('rate of a hook nan', 'cls',
     dict(custom_hooks=[dict(type='vim_mm.WarmHeadHook', epochs=1,
                             optimizer=dict(type='AdamW', lr=nan))]),
     'WarmHeadHook.optimizer.lr` is nan'),
    ('misspelt data set', 'det', {f'{DATA}.type': 'CocoDatasset'},
     "perhaps 'CocoDataset'"),
    *each('misspelt pipeline', {f'{DATA}.pipelin': []}, 'perhaps pipeline'),
    ('misspelt stage', 'seg',
     {f'{DATA}.pipeline': [dict(type='LoadImageFromFille')]},
     "perhaps 'LoadImageFromFile'"),
    *of_head('misspelt setting', 'num_clases', 2, 'perhaps num_classes'),
    ('misspelt hook', 'cls', dict(custom_hooks=[dict(type='EMAHok')]),
     "perhaps 'EMAHook'"),
    # classes of data, head and file
    *of_head('a class too few in the head', 'num_classes', 1,
             'is built for 1 classes, and the training set has')[::2],
    ('a class too few in the head', 'det',
     {'det/ann.json': annotations(names=('square', 'disk')),
      f'{DATA}.metainfo.classes': ['square', 'disk']},
     '`model.bbox_head` is built for 1 classes, and .* has 2'),
    ('a folder too few', 'cls', {f'{DATA}.classes': ['dark']},
     'holds 2 classes, dark, light, and .* names 1'),
    ('a misspelt folder', 'cls', {f'{DATA}.classes': ['dark', 'lihgt']},
     'numbers its classes dark, light, and .* dark, lihgt'),
    ('a misspelt category', 'det', {f'{DATA}.metainfo.classes': ['squere']},
     'has none: it has square'),
    ('one class', 'det', {f'{DATA}.metainfo': dict(classes='square')},
     r"are the text 'square', .* give a list, \['square'\]"),
    ('one folder', 'cls', {f'{DATA}.classes': 'dark'}, "are the text 'dark'"),
    ('misspelt filter', 'det', {f'{DATA}.filter_cfg': dict(filter_empty=True)},
     'filter_cfg.filter_empty_gt` is meant'),
    ('a category that the file lacks', 'det',
     {f'{DATA}.metainfo.classes': ['square', 'disk']}, r"no classes \['disk'"),
    ('a label too large', 'cls',
     {f'{DATA}.ann_file': 'cls/list.txt',
      'cls/list.txt': 'dark/0.png 0\nlight/1.png 2\n'},
     "Line 2 of .*list.txt ends in the label '2', .* names 2 classes"),
    *[('a list against its folders', 'cls',
       {f'{DATA}.ann_file': 'cls/list.txt',
        'cls/list.txt': f'{first}/0.png 0\n{second}\n'},
       f"gives '{wrong}' the label ., which by .* is '.*' and not '{name}'")
      for first, second, wrong, name in (
          ('dark', 'light/1.png 0', 'light/1.png', 'light'),
          ('light', 'dark/1.png 1', 'light/0.png', 'light'))],
    ('a label that is no number', 'cls',
     {f'{DATA}.ann_file': 'cls/list.txt', 'cls/list.txt': 'dark/0.png dark'},
     "ends in the label 'dark'"),
    *[('validation of other classes', kind,
       {'val_dataloader': dict(
           batch_size=1, sampler=dict(type='DefaultSampler', shuffle=False),
           dataset=dict(type='BaseSegDataset',
                        metainfo=dict(classes=['zebra', 'x'], palette=[]))),
        'val_cfg': {}, 'val_evaluator': {}},
       f"Class 0 is '{NAMES[kind][0]}' in `train_.* 'zebra' in `val_data")
      for kind in ('seg', )],
    # annotations
    ('a box nan', 'det', {'det/ann.json': annotations((4, 4, nan, 30))},
     'holds NaN at byte'),
    *[(f'a box {box}', 'det', {'det/ann.json': annotations(box)},
       'The box .* in the annotation .* is no list of four numbers')
      for box in ((4, 4, 30), [], None, '4 4 30 30', (4, 4, None, 30))],
    ('an annotation without a box', 'det', {'det/ann.json': annotations(
        ).replace('"bbox": [4, 4, 30, 30], ', '', 1)},
     'The annotation 0 of .*ann.json has no `bbox`, as others have'),
    ('a box inf', 'det', {'det/ann.json': annotations((-inf, 4, 9, 30))},
     'holds -Infinity at byte'),
    ('boxes of no size', 'det', {'det/ann.json': annotations((4, 4, 0, 30))},
     'No image of the training set has a box'),
    ('no boxes', 'det', {'det/ann.json': annotations(num=0)},
     r"CocoDataset\(data_root='.*', ann_file='det/ann.json'\) is empty"),
    ('an empty file', 'det', {'det/ann.json': ''}, 'is empty .0 bytes'),
    ('no image', 'cls', {f'{DATA}.ann_file': 'cls/none.txt',
                         'cls/none.txt': ''}, 'CustomDataset.* is empty'),
    ('a blank line', 'cls', {f'{DATA}.ann_file': 'cls/list.txt',
                             'cls/list.txt': '\n'}, "Line 1 .* the label ''"),
    ('no map', 'seg', {f'{DATA}.data_prefix.img_path': 'seg',
                       f'{DATA}.img_suffix': '.jpg'}, 'is empty'),
    ('all pixels ignored', 'seg',
     {f'seg/ann/{i}.png': labels(255) for i in range(4)},
     'Nothing in the whole training set is labelled'),
    ('a map of another size', 'seg',
     {f'seg/ann/{i}.png': labels(1, 28) for i in range(4)},
     'has 56 x 56 px, and its label map .*0.png 28 x 28'),
    ('a map of colours', 'seg',
     {f'seg/ann/{i}.png': image(0) for i in range(4)},
     'The label map .*.png has 3 channels; give maps of one'),
    ('a label of no class', 'seg', {'seg/ann/2.png': labels(7)},
     'img/2.png has the label 7, and `decode_head` is built for 2 classes'),
    ('an image of 0 bytes', 'cls', {'cls/dark/0.png': ''}, '0.png'),
    # channels
    ('channels of a neck', 'cls', {'model.neck.in_channels': [8, 8, 8]},
     'neck ViMFusionNeck does not take'),
    *of_head('channels', 'in_channels', 7, 'reads 7 channels'),
    # numbers that are none
    ('a warm-up that overflows', 'cls',
     dict(custom_hooks=[dict(type='vim_mm.WarmHeadHook', epochs=3,
                             clip_grad=None,
                             optimizer=dict(type='SGD', lr=1e30))]),
     'loss of WarmHeadHook is (nan|inf)'),
    ('images that are none', 'cls',
     {'model.data_preprocessor.mean': [nan, 60., 60.]},
     'loss is nan in iteration 1: `data_preprocessor` is the first part'),
]


@pytest.mark.parametrize(('kind', 'change', 'words'), [
    pytest.param(*row, id=f'{name} ({row[0]})') for name, *row in ROWS])
def test_it_is_told(kind: str, change: dict, words: str,
                    tmp_path: Path) -> None:
    with told_before_training(words, tmp_path):
        train(kind, change, tmp_path)


@pytest.mark.parametrize('kind', KINDS)
def test_the_config_that_is_changed_trains(kind: str, tmp_path: Path) -> None:
    assert train(kind, {}, tmp_path).iter == 3
