# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What libraries notice at the first batch, at the first validation or never
is told in a sentence before a run trains.

Rows are those of test_wrong_uses; a key ``val`` changes a validation that
works, ``None`` is one that does.
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import TRANSFORMS
from mmengine.runner import Runner
from test_wrong_uses import (DATA, LOADED, LOADER, NAMES, annotations, config,
                             image, put, told_before_training, train)
from torch.utils.data import DataLoader

from _loading import LOAD, lines
from _tiny import KINDS, SIZE
from vim_mm.engine import batch_watch, rate_schedules, schedule_checks, trial
from vim_mm.utils.settings import check_together

METRICS = dict(cls=dict(type='Accuracy'), det=dict(type='CocoMetric'),
               seg=dict(type='IoUMetric'))
KEEP = dict(type='CheckpointHook', by_epoch=False, interval=1)


def validation(kind: str, folder: Path, change: dict) -> dict:
    """One that works, changed by keys of the config."""
    dataset = config(kind, folder).train_dataloader.dataset.to_dict()
    dataset['pipeline'] = [LOAD, *LOADED[kind]]
    evaluator = dict(METRICS[kind])
    if kind == 'det':
        dataset['pipeline'].insert(1, dict(type='Resize', scale=(SIZE, SIZE)))
        evaluator['ann_file'] = str(folder / 'det/ann.json')
    return dict(
        dict(
            val_dataloader=dict(
                batch_size=2, num_workers=0, dataset=dataset,
                sampler=dict(type='DefaultSampler', shuffle=False)),
            val_evaluator=evaluator, val_cfg={}), **change)


def run(kind: str, change: dict, folder: Path) -> Runner:
    change = dict(change)
    for key in [key for key in change if key.startswith('file:')]:
        put(folder / key[5:], change.pop(key))
    if 'val' in change:
        own = change.pop('val') or {}
        merged = validation(kind, folder, {})
        merged.update({key: value for key, value in own.items()})
        change = {**merged, **change}
    return train(kind, change, folder)


def waits(**hook: Any) -> dict:
    return {'default_hooks.checkpoint': dict(KEEP, **hook)}


SAVES = {'default_hooks.checkpoint': KEEP}
STOP = dict(custom_hooks=[dict(type='EarlyStoppingHook', monitor='acc')])
PLATEAU = dict(param_scheduler=dict(type='ReduceOnPlateauLR', monitor='acc'))
SHORT = 'val_dataloader.dataset.pipeline'
ROWS = [
    # a validation that would fail, or be waited for in vain
    ('metric of another kind', 'cls',
     dict(val={'val_evaluator': dict(type='mmseg.IoUMetric')}),
     r"validation would fail \(`val_evaluator`\): KeyError, 'pred_sem_seg'"),
    ('no annotations', 'seg',
     {'val': None, SHORT: [LOAD, dict(type='PackSegInputs')]},
     "validation would fail .*'gt_sem_seg'"),
    ('not packed', 'cls', {'val': None, SHORT: [LOAD]},
     '`val_dataloader`: The pipeline gives .* PackInputs'),
    ('boxes without a scale', 'det',
     {'val': None, SHORT: [LOAD, *LOADED['det']]},
     'validation would fail .*scale_factor'),
    ('boxes without truth', 'det',
     dict(val={'val_evaluator': dict(type='CocoMetric')}),
     'validation would fail .*AssertionError, ground truth is required'),
    ('masks that a model does not give', 'det',
     {'val': None, 'val_evaluator.metric': ['bbox', 'segm'],
      SHORT: [LOAD, dict(type='Resize', scale=(SIZE, SIZE)),
              *LOADED['det']]},
     "would fail: `val_evaluator` judges masks .*leave 'segm' out"),
    ('more classes than there are', 'cls',
     dict(val={'val_evaluator': dict(type='Accuracy', topk=(1, 5))}),
     'validation would fail .*Top-5 accuracy is unavailable'),
    ('metric without a type', 'cls',
     dict(val={'val_evaluator': dict(topk=1)}), "no `type`, only .'topk'"),
    ('a validation after the end', 'cls',
     {'val': None, 'train_cfg.val_begin': 99},
     'val_begin` is 99, and the run ends after 3'),
    ('endless validation', 'cls',
     {'val': None, 'val_dataloader.sampler': dict(type='InfiniteSampler')},
     '`val_dataloader` has an InfiniteSampler'),
    ('best of another name', 'cls',
     {'val': None, **waits(save_best='accuracy/top5')},
     "save_best waits for the metric 'accuracy/top5', .* accuracy/top1"),
    ('stops by another name', 'cls', {'val': None, **STOP},
     "EarlyStoppingHook.monitor waits for the metric 'acc'"),
    ('slows by another name', 'cls', {'val': None, **PLATEAU},
     "ReduceOnPlateauLR waits for the metric 'acc'"),
    *[(f'best {name!r}', 'det',
       {'val': None, SHORT: [LOAD, dict(type='Resize', scale=(SIZE, SIZE)),
                             *LOADED['det']], **waits(save_best=name)},
       f"save_best waits for the metric '{name}', .* coco/bbox_mAP, coco/")
      for name in ('coco/bbox_map', 'mAP', 'coco/segm_mAP')],
    ('best of nothing', 'cls', waits(save_best='auto'),
     'CheckpointHook waits for a validation, and the run has none'),
    ('stops by nothing', 'cls', STOP, 'EarlyStoppingHook waits for a val'),
    ('slows by nothing', 'cls', PLATEAU, 'ReduceOnPlateauLR waits for a val'),
    ('maps in two ways', 'seg',
     {'val': None, 'val_dataloader.dataset.reduce_zero_label': True},
     'train_dataloader.dataset.reduce_zero_label` is False, and that of '
     '`val_dataloader.dataset` True'),
    ('maps of training', 'seg',
     {'val': None, 'val_dataloader.dataset.data_prefix.img_path': 'seg/other',
      **{f'seg/other/{i}.png': image(9) for i in range(4)}},
     'The label map .*ann/0.png is that of .*img/0.png in `train_.*other/0.'),
    # the metric's own file
    *[(f'file of a metric: {what}', 'det',
       {'val': None, 'val_evaluator.ann_file': '{folder}/other.json',
        'file:other.json': text}, words) for what, text, words in (
            *[(f'no {key}', annotations().replace(key, 'other'),
               f'The annotation 0 of .*other.json has no `{key}`, which metr')
              for key in ('iscrowd', 'area')],
            ('fewer images', annotations(num=2), 'lacks 2 of the 4 images'),
            ('other images', annotations().replace('.png', 'x.png'),
             "calls the image 0 '0x.png', and the data set"),
            ('other classes', annotations(names=('disk', )),
             r"has the classes \[\], and the data set \['square'\]"))],
    # schedules
    ('epochs of iterations', 'cls',
     dict(param_scheduler=dict(type='CosineAnnealingLR', T_max=9)),
     'CosineAnnealingLR counts epochs, and the run iterations'),
    ('epochs of iterations, in a list', 'cls',
     dict(param_scheduler=[
         dict(type='LinearLR', by_epoch=False, end=2),
         dict(type='MultiStepLR', milestones=[2])]),
     'MultiStepLR counts epochs'),
    ('an epoch without an end', 'cls',
     dict(train_cfg=dict(_delete_=True, by_epoch=True, max_epochs=2)),
     '`train_dataloader` has an InfiniteSampler'),
    # the first batch
    ('not packed in training', 'cls', {f'{DATA}.pipeline': [LOAD]},
     'gives .* reads `inputs`; .* PackInputs'),
    ('not loaded', 'cls',
     {f'{DATA}.pipeline': [dict(type='PackInputs')]}, 'before a step is done'),
    ('maps not loaded', 'seg',
     {f'{DATA}.pipeline': [LOAD, dict(type='PackSegInputs')]},
     r'fails in `model.decode_head` \(FCNHead\) before a step is done'),
    ('boxes not loaded', 'det',
     {f'{DATA}.pipeline': [LOAD, dict(type='PackDetInputs')]},
     r'fails in `model.bbox_head` \(FCOSHead\) before a step is done'),
    ('means of four channels', 'cls',
     {'model.data_preprocessor.mean': [1., 2., 3., 4.],
      'model.data_preprocessor.std': [1.] * 4},
     'An image has 3 channels, and `mean` and .* have 4'),
    ('images of four channels', 'cls',
     {f'{DATA}.pipeline': [dict(LOAD, color_type='unchanged'),
                           dict(type='PackInputs')],
      **{f'cls/{name}/{i}.png': image(9, channels=4) for i, name in enumerate(
          NAMES['cls'] * 2)}}, 'An image has 4 channels'),
    *[(f'normalised twice, {std}', 'cls',
       {f'{DATA}.pipeline': [
           LOAD, dict(type='Normalize', mean=mean, std=[std] * 3,
                      to_rgb=False), dict(type='PackInputs')]},
       'No pixel of a batch is above .* normalised twice')
      for mean, std in (([120.] * 3, 58.), ([0.] * 3, 255.))],
    ('a stage that cannot', 'cls',
     {f'{DATA}.pipeline': [LOAD, dict(type='Resize', scale=0),
                           dict(type='PackInputs')]},
     r'pipeline ends at Resize, image .*png'),
    ('a stage against its data set', 'seg',
     {f'{DATA}.pipeline': [
         LOAD, dict(type='LoadAnnotations', reduce_zero_label=True),
         dict(type='PackSegInputs')]}, 'pipeline ends at LoadAnnotations'),
    # what is built
    ('workers that persist', 'cls', {f'{LOADER}.persistent_workers': True},
     'persistent_workers option needs num_workers > 0'),
    ('what is fetched before', 'cls', {f'{LOADER}.prefetch_factor': 2},
     'prefetch_factor option'),
    ('no optimizer', 'cls',
     {'optim_wrapper': dict(_delete_=True, type='OptimWrapper')},
     'before a step is done: ValueError'),
    ('schedule without a type', 'cls', dict(param_scheduler=[dict(T_max=3)]),
     'cannot be built: AssertionError, Each parameter scheduler'),
    ('a scale of none', 'cls', dict(auto_scale_lr=dict(enable=True)),
     'Lack of `base_batch_size`'),
    ('a scale of 0', 'cls',
     dict(auto_scale_lr=dict(enable=True, base_batch_size=0)),
     'base_batch_size` is 0; give a whole number, 1 or more'),
    ('intervals in a list', 'cls', {'train_cfg.dynamic_intervals': 3},
     'is_list_of'),
    ('averages that never begin', 'cls',
     dict(custom_hooks=[dict(type='EMAHook', begin_iter=99)]),
     'begin_iter should be smaller'),
    ('a way to start processes', 'cls',
     {'env_cfg.mp_cfg': dict(mp_start_method='sprawn')},
     "cannot find context for 'sprawn'"),
    ('a seed without its name', 'cls', dict(randomness=3), 'be a mapping'),
    ('a part of a validation', 'cls', dict(val_evaluator=METRICS['cls']),
     'cannot be built: ValueError, val_dataloader, val_cfg, and'),
]


@pytest.mark.parametrize(('kind', 'change', 'words'), [
    pytest.param(*row, id=f'{name} ({row[0]})') for name, *row in ROWS])
def test_it_is_told(kind: str, change: dict, words: str,
                    tmp_path: Path) -> None:
    filled = json.loads(json.dumps(change).replace(
        '{folder}', str(tmp_path))) if 'ann_file' in str(change) else change
    with told_before_training(words, tmp_path):
        run(kind, filled, tmp_path)


class Notes(Hook):
    """What a run is like before its first step."""

    def before_train_iter(self, runner: Runner, *args: Any,
                          **kwargs: Any) -> None:
        if not runner.iter:
            self.training = runner.model.training
            self.results = [metric.results
                            for metric in runner.val_loop.evaluator.metrics]


@pytest.mark.parametrize('kind', KINDS)
def test_a_validation_that_works(kind: str, tmp_path: Path) -> None:
    notes = Notes()
    runner = run(kind, {
        'val': None, 'then': lambda run: run.register_hook(notes)}, tmp_path)
    assert runner.iter == 3
    assert notes.training and notes.results == [[]]


@pytest.mark.parametrize('size, seen', [(1, [1, 1]), (2, [2]), (8, [2])])
def test_it_is_tried_in_batches_of_the_loader(size: int, seen: list) -> None:
    """Images of unlike sizes make no batch."""
    found = []
    nothing = SimpleNamespace(
        metrics=[], process=lambda **_: None, evaluate=lambda _: {})
    trial._judge(
        SimpleNamespace(val_step=lambda batch: found.append(len(batch))), '',
        SimpleNamespace(
            evaluator=nothing, fp16=False,
            dataloader=DataLoader([0] * 5, size, collate_fn=list)), 'mmengine')
    assert found == seen


def test_a_run_that_is_resumed_is_not_tried(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change = {'val': None, 'default_hooks.checkpoint': KEEP,
              'randomness': dict(seed=0)}
    run('cls', change, tmp_path)
    monkeypatch.setattr(trial, '_judge', None)
    more = {'train_cfg.max_iters': 4, 'resume': True}
    assert run('cls', dict(change, **more), tmp_path).iter == 4


@TRANSFORMS.register_module()
class Broken:

    def __call__(self, results: dict) -> dict:
        return results['no such key']


def test_an_error_of_ones_own_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match='no such key'):
        run('cls', {f'{DATA}.pipeline': [LOAD, dict(type='Broken')]},
            tmp_path)


class Fails(Hook):
    """A library that fails after some steps."""

    def after_train_iter(self, runner: Runner, *args: Any,
                         **kwargs: Any) -> None:
        if runner.iter == 1:
            torch.nn.Linear(2, 3)(torch.ones(1, 5))


def test_an_error_of_a_later_step_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match='shapes cannot be multiplied'):
        run('cls', {
            'then': lambda run: run.register_hook(Fails())}, tmp_path)


@pytest.mark.parametrize(('change', 'words'), [
    (dict(param_scheduler=dict(type='CosineAnnealingLR', by_epoch=False,
                               T_max=900), **SAVES),
     'CosineAnnealingLR .* until 900'),
    (dict(param_scheduler=dict(type='MultiStepLR', by_epoch=False,
                               milestones=[90, 99]), **SAVES),
     'until 90, .* after 3'),
    (dict(param_scheduler=dict(type='MultiStepLR', by_epoch=False,
                               milestones=[2, 99]), **SAVES), None),
    ({'default_hooks.checkpoint': dict(KEEP, by_epoch=True)},
     'CheckpointHook counts epochs, and the run iterations'),
    ({'default_hooks.checkpoint': None}, 'Nothing of what is learned'),
    ({'default_hooks.checkpoint': dict(KEEP, interval=-1)}, None),
    ({'default_hooks.checkpoint': dict(KEEP, interval=-1, save_last=False)},
     'Nothing of what is learned'),
])
def test_what_one_line_says(change: dict, words: Any, tmp_path: Path,
                            monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, rate_schedules, schedule_checks)
    assert run('cls', change, tmp_path).iter == 3
    if words is None:
        assert not told
        return
    said, = told
    assert re.search(words, said), said


@pytest.mark.parametrize(('kind', 'change', 'lacking'), [
    ('seg', {f'{DATA}.reduce_zero_label': True}, r'\[1\], of the 2 classes'),
    ('cls', {f'{DATA}.ann_file': 'cls/list.txt',
             'cls/list.txt': 'light/1.png 1\nlight/3.png 1\n'}, r'\[0\], of'),
    ('cls', {}, None), ('seg', {}, None),
])
def test_classes_of_no_image(kind: str, change: dict, lacking: Any,
                             tmp_path: Path,
                             monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, batch_watch)
    run(kind, change, tmp_path)
    if lacking is None:
        assert not told
        return
    said, = told
    assert re.search(f'Labels {lacking}', said), said


@pytest.mark.parametrize('given', [
    dict(train_dataloader={}), dict(train_dataloader={}, train_cfg={}),
    dict(val_evaluator={}), dict(test_dataloader={}, test_cfg={})])
def test_parts_that_go_together(given: dict) -> None:
    with pytest.raises(ValueError, match='The config has `.*` and no `'):
        check_together(dict(given, model={}))
    check_together(dict(dict.fromkeys(('val_dataloader', 'val_cfg')),
                        model={}))


@pytest.mark.parametrize('name', ['auto', 'accuracy/top1'])
def test_the_best_beside_a_head_that_is_judged_before(
        name: str, tmp_path: Path) -> None:
    """A right use: what is judged before the training is not saved."""
    done = run('cls', {
        'val': None, **waits(save_best=name),
        'custom_hooks': [dict(type='vim_mm.WarmHeadHook', epochs=1,
                              evaluate=True)]}, tmp_path)
    assert done.iter == 3
    assert list(tmp_path.glob('**/best_accuracy*.pth'))
