# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Images and annotations that do not belong together, and boxes without place.

Rows are those of test_late_wrong_uses.
"""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any, List, Union

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.datasets import BaseSegDataset
from test_late_wrong_uses import SHORT, run
from test_wrong_uses import DATA, LOADED, OPTIMIZER, ZOO, told_before_training

from _loading import LOAD, lines
from _tiny import KINDS, SIZE
from vim_mm.engine import box_losses
from vim_mm.engine.box_losses import BoxLosses
from vim_mm.utils import keys, pipelines
from vim_mm.utils.keys import check_keys
from vim_mm.utils.pipelines import check_pipelines

LEARNS = f'{DATA}.pipeline'
RESIZE = dict(type='Resize', scale=(SIZE, SIZE))
FLIP = dict(type='RandomFlip', prob=1.)
NORM = dict(type='Normalize', mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375], to_rgb=False)
SWAP = dict(type='Normalize', mean=[0.] * 3, std=[1.] * 3, to_rgb=True)


def judged(kind: str, *stages: dict) -> dict:
    """A validation with stages after the image is loaded."""
    resized = [RESIZE] if kind == 'det' else []
    return {'val': None, SHORT: [LOAD, *resized, *stages, *LOADED[kind]]}


def learned(kind: str, *stages: dict, last: bool = False) -> dict:
    """A training with stages after the image is loaded, or before packing."""
    *loaded, pack = LOADED[kind]
    if last:
        return {LEARNS: [LOAD, *loaded, *stages, pack]}
    return {LEARNS: [LOAD, *stages, *loaded, pack]}


ROWS = [
    *[(f'{stage["type"]} before annotations', kind, learned(kind, stage),
       f'pipeline` has {stage["type"]} before LoadAnnotations: .*fit')
      for kind in ('det', 'seg')
      for stage in (FLIP, RESIZE, dict(type='RandomCrop', crop_size=(9, 9)))],
    ('a choice before annotations', 'det',
     learned('det', dict(type='RandomChoice', transforms=[[FLIP], [RESIZE]])),
     'pipeline` has RandomFlip before LoadAnnotations'),
    *[(f'{stage["type"]} where boxes are judged', 'det',
       judged('det', stage), f'pipeline` has {stage["type"]}, and boxes are')
      for stage in (FLIP, dict(type='RandomFlip', prob=.5),
                    dict(type='RandomCrop', crop_size=(30, 30)))],
    *[('normalised in training alone', kind, {
        **judged(kind), **learned(kind, SWAP, last=True)},
       r'val_dataloader` are normalised by no Normalize, .* by Normalize\(')
      for kind in KINDS],
    ('normalised in validation alone', 'cls', judged('cls', NORM),
     'those of `train_dataloader` by no Normalize'),
    ('with channels the other way', 'cls', {
        **judged('cls', SWAP), LEARNS: [
            LOAD, dict(SWAP, to_rgb=False), *LOADED['cls']]},
     'to_rgb=True.*to_rgb=False'),
    # other words of the first generation, and numbers
    *[(f'{key} of old', 'cls', {f'train_dataloader.{key}': 2},
       f'train_dataloader.{key}` is read no more; use `{now}`')
      for key, now in (('samples_per_gpu', 'batch_size'),
                       ('workers_per_gpu', 'num_workers'))],
    ('saved twice', 'cls', dict(custom_hooks=[ZOO, dict(ZOO, dataset='e')]),
     "Two ModuleToZooHooks save 'n' in the zoo 'zoo'; leave one out"),
    ('misspelt in training', 'det',
     {'model.train_cfg': dict(asigner=dict(type='x'))},
     r'model.train_cfg.asigner`; perhaps .*assigner` is meant'),
    ('misspelt in a part of training', 'det',
     {'model.train_cfg': dict(rcnn=dict(samplr=dict(type='x')))},
     r'model.train_cfg.rcnn.samplr`; perhaps .*sampler` is meant'),
    ('momentum', 'cls',
     {OPTIMIZER: dict(type='SGD', lr=1e-3, momentum=1.5)},
     'momentum` is 1.5; give a number from 0 to below 1'),
    ('one beta', 'cls', {f'{OPTIMIZER}.betas': (.9, )},
     r'betas` is \(0.9,\); give two numbers'),
    ('a beta of 1', 'cls', {f'{OPTIMIZER}.betas': (.9, 1.)},
     r'betas\[1\]` is 1.0; give a number'),
    *[(f'std of {std}', 'cls',
       {'model.data_preprocessor.std': [std, 60., 60.]},
       rf'data_preprocessor.std` is \[{std}.*; give numbers above 0')
      for std in (-60., 0.)],
    ('padded to multiples of 0', 'cls',
     {'model.data_preprocessor.pad_size_divisor': 0},
     'pad_size_divisor` is 0; give a whole number'),
    ('a chance above 1', 'det',
     learned('det', dict(type='RandomFlip', prob=1.5), last=True),
     r'pipeline\[2\].prob` is 1.5; give a number from 0 to 1'),
    ('a direction that is none', 'det',
     learned('det', dict(FLIP, direction='up'), last=True),
     'in the stage RandomFlip: '),
]


@pytest.mark.parametrize(('kind', 'change', 'words'), [
    pytest.param(*row, id=f'{name} ({row[0]})') for name, *row in ROWS])
def test_it_is_told(kind: str, change: dict, words: str,
                    tmp_path: Path) -> None:
    with told_before_training(words, tmp_path):
        run(kind, deepcopy(change), tmp_path)


@pytest.mark.parametrize('kind', ['cls', 'seg'])
def test_validations_that_draw_are_named(
        kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, pipelines)
    assert run(kind, judged(kind, FLIP), tmp_path).iter == 3
    assert len(told) == 1
    assert re.search(r'pipeline` draws at random \(RandomFlip\)', told[0])


def test_a_test_of_images_as_a_release_knows_them_is_named(
        monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, pipelines)
    stage = dict(type='vim_mm.ReRepresent', release='x')
    for loader in ('train', 'val'):
        check_pipelines(Config({f'{loader}_dataloader': dict(
            dataset=dict(type='x', pipeline=[LOAD, stage]))}))
    said, = told
    assert '`val_dataloader.dataset.pipeline` has ReRepresent' in said


@pytest.mark.parametrize(('kind', 'change'), [
    ('det', judged('det', dict(type='RandomFlip', prob=0.))),
    ('det', learned('det', dict(type='RandomFlip', prob=.5), last=True)),
    ('det', learned('det', dict(type='PhotoMetricDistortion'))),
    # the images of a test are resized, and boxes are scaled back
    ('det', judged('det')),
    ('cls', {'model.data_preprocessor.mean': None,
             'model.data_preprocessor.std': None,
             **judged('cls', NORM), **learned('cls', NORM)}),
], ids=str)
def test_what_is_right_trains(kind: str, change: dict, tmp_path: Path,
                              monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, pipelines)
    assert run(kind, deepcopy(change), tmp_path).iter == 3
    assert told == []


def test_settings_of_old_are_named_if_they_say_anything(
        monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, keys)
    check_keys(Config(dict(optimizer_config=dict(grad_clip=None), fp16=None,
                           optimizer=dict(), optim_wrapper=dict(type='x'))))
    assert told == []
    check_keys(Config(dict(optimizer_config=dict(grad_clip=dict(max_norm=35)),
                           fp16=dict(loss_scale=512.))))
    assert told == [
        "`fp16` is read no more; use `optim_wrapper.type='AmpOptimWrapper'`.",
        '`optimizer_config` is read no more; use `optim_wrapper.clip_grad`.']


def test_each_task_is_compared_with_itself() -> None:
    sets = {task: dict(dataset=dict(type='x', pipeline=[dict(norm)]))
            for task, norm in (('a', NORM), ('b', SWAP))}
    check_keys(Config(dict(train_dataloader=sets, val_dataloader=sets)))
    other = dict(sets, b=sets['a'])
    with pytest.raises(ValueError, match='`val_dataloader.b` are normalised'):
        check_keys(Config(dict(train_dataloader=sets, val_dataloader=other)))


@pytest.mark.parametrize('kind', KINDS)
def test_flips_of_several_views_are_undone(
        kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, pipelines)
    views = dict(type='TestTimeAug', transforms=[
        [RESIZE], [dict(FLIP, prob=p) for p in (1., 0.)], LOADED[kind]])
    check_keys(Config(dict(test_dataloader=dict(dataset=dict(
        type='x', pipeline=[LOAD, views])))))
    assert told == []


def test_other_libraries_normalise_in_their_own_way() -> None:
    albu = dict(type='Albu', transforms=[dict(type='Normalize', mean=.5)])
    check_keys(Config({
        f'{stage}_dataloader': dict(dataset=dict(type='x', pipeline=[norm]))
        for stage, norm in (('train', albu), ('val', NORM))}))


# ------------------------------------------------------------- at the batches


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('stage', ['val', 'test'])
def test_images_normalised_twice_are_not_judged(
        kind: str, stage: str, tmp_path: Path) -> None:
    """Of a run that trains nothing, so that no training tells it before."""
    change = judged(kind, NORM)
    runner = run(kind, {**judged(kind)}, tmp_path)
    cfg = deepcopy(runner.cfg)
    for name in ('dataloader', 'evaluator', 'cfg'):
        cfg[f'{stage}_{name}'] = cfg[f'val_{name}']
    cfg[f'{stage}_dataloader'].dataset.pipeline = change[SHORT]
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        cfg.pop(key)
    cfg.experiment_name = f'{tmp_path}-{stage}'
    again = Runner.from_cfg(cfg)
    with pytest.raises(ValueError, match='images are normalised twice'):
        getattr(again, stage)()


def boxes(*steps: dict, labelled: bool = True) -> BoxLosses:
    found = BoxLosses()
    for step in steps:
        found.add(labelled, {k: torch.tensor(v) for k, v in step.items()})
    return found


ZERO: List[Any] = [dict(loss_cls=1., loss_bbox=0., loss_iou=0.)] * 10


def test_boxes_without_a_place_stop_a_run(
        monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, box_losses)
    with pytest.raises(ValueError, match='loss_bbox, loss_iou: exactly 0 in '
                       'the first 10 steps that had boxes'):
        boxes(*ZERO).check()
    assert told == []
    boxes(*ZERO[1:]).check()  # too few to be sure
    boxes(*ZERO, dict(loss_cls=1., loss_bbox=1e-6, loss_iou=0.)).check()
    assert [line.partition(':')[0] for line in told] == [
        'loss_bbox, loss_iou', 'loss_iou']
    boxes(*ZERO, labelled=False).check()
    boxes(*ZERO, dict(loss_cls=1., loss_bbox=.1, loss_iou=.1)).check()
    boxes(dict(loss=0.)).check()
    assert len(told) == 2


def test_a_loss_that_is_left_out_is_no_sign(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, box_losses)
    assert run('det', {'model.bbox_head.loss_bbox': dict(
                           type='IoULoss', loss_weight=0.),
                       'train_cfg.max_iters': 12}, tmp_path).iter == 12
    boxes(*[{'t.loss_bbox': 0.}] * 12).check(['loss_bbox'])
    assert told == []


def test_a_head_that_takes_no_box(tmp_path: Path) -> None:
    change = {'model.bbox_head.regress_ranges': ((-1, 1), ),
              'train_cfg.max_iters': 12}
    with pytest.raises(ValueError, match='exactly 0 in the first 12 steps'):
        run('det', change, tmp_path)


class OwnMaps(BaseSegDataset):
    """Hands what it is given on."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


@pytest.mark.parametrize('place', ['root', 'prefix'])
@pytest.mark.parametrize(('kind', 'train', 'test', 'fits'), [
    ('mmseg.BaseSegDataset', None, True, False),
    ('mmseg.BaseSegDataset', True, True, True),
    ('mmseg.BaseSegDataset', None, False, True),
    ('mmseg.ADE20KDataset', None, True, True),
    ('mmseg.ADE20KDataset', None, False, False),
    ('mmseg.NoDataset', None, True, True),
    (OwnMaps, None, True, False),
    (OwnMaps, None, False, True),
])
def test_labels_of_a_test_that_are_one_off(
        kind: Union[str, type], train: Any, test: Any, fits: bool,
        place: str) -> None:
    cfg = Config({
        f'{part}_dataloader': dict(dataset=dict(
            type=kind, reduce_zero_label=way,
            **(dict(data_root='x') if place == 'root' else dict(
                data_prefix=dict(seg_map_path=f'maps/{part}/')))))
        for part, way in (('train', train), ('test', test))})
    if fits:
        check_pipelines(cfg)
        return
    with pytest.raises(ValueError, match='train_dataloader.dataset.reduce_zero'
                       '.*test_dataloader.*one off'):
        check_pipelines(cfg)


@pytest.mark.parametrize(('scope', 'stage', 'refused'), [
    ('vim_mm', dict(type='RandomResize', scale=(9, 9)), True),
    ('vim_mm', dict(type='RandomChoiceResize', scales=[(9, 9)]), True),
    ('vim_mm', dict(type='RandomResize', scale=(9, 9),
                    resize_type='mmdet.Resize'), False),
    ('mmdet', dict(type='RandomResize', scale=(9, 9)), False),
])
@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
def test_resizes_of_boxes(scope: str, stage: dict, refused: bool,
                          library: str) -> None:
    """mmcv's resize leaves mmdet's boxes alone, or fails."""
    kind = dict(mmdet='CocoDataset', mmseg='BaseSegDataset')[library]
    cfg = Config(dict(default_scope=scope, train_dataloader=dict(dataset=dict(
        type=f'{library}.{kind}', pipeline=[LOAD, dict(
            type=f'{library}.LoadAnnotations'), stage]))))
    if refused and library == 'mmdet':
        with pytest.raises(ValueError, match="its `resize_type='mmdet.Resi"):
            check_pipelines(cfg)
    else:
        check_pipelines(cfg)
