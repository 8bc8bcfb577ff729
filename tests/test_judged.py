# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Labels, classes and metrics by which a run is judged wrongly are told.

Rows are those of test_late_wrong_uses.
"""

import json
import re
from copy import deepcopy
from math import nan
from pathlib import Path
from typing import Any, Callable, List

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS
from mmengine.runner import Runner
from mmpretrain.datasets import CustomDataset
from test_late_wrong_uses import run, validation, waits
from test_wrong_uses import (annotations, config, image, labels, put,
                             told_before_training, write)

from _loading import lines
from vim_mm.engine import judged, schedule_checks, trial
from vim_mm.models.fit import check_classes

VAL = 'val_dataloader.dataset'


@METRICS.register_module()
class Gives(BaseMetric):
    """A metric of one's own that gives what it is told to."""
    default_prefix = 'own'

    def __init__(self, what: Any, most: int = 0) -> None:
        super().__init__()
        self.what, self.most = what, most

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += data_samples

    def compute_metrics(self, results: list) -> Any:
        if len(results) < self.most:
            raise IndexError('too few')
        return self.what


@DATASETS.register_module()
class FromOne(CustomDataset):
    """Counts labels from 1."""

    def load_data_list(self) -> List[dict]:
        return [dict(each, gt_label=each['gt_label'] + 1)
                for each in super().load_data_list()]


def unnamed(*names: str) -> dict:
    """Folders of classes that no config names."""
    return {'val': None, 'train_dataloader.dataset.classes': None,
            f'{VAL}.classes': None, f'{VAL}.data_prefix': 'own', **{
                f'file:own/{name}/{i}.png': image(i)
                for i, name in enumerate(names)}}


def own(**metric: Any) -> dict:
    return {'val': {'val_evaluator': dict(type='Gives', **metric)}}


def maps(*values: int) -> dict:
    return {'val': None, f'{VAL}.data_prefix.seg_map_path': 'other',
            **{f'file:other/{i}.png': labels(v)
               for i, v in enumerate(values)}}


def boxes(num: int) -> str:
    content = json.loads(annotations())
    content['annotations'] = content['annotations'][:num]
    return json.dumps(content)


ROWS = [
    ('folder of other names', 'cls', unnamed('Light', 'dark'),
     "Class 0 is 'dark' in `train_dataloader` .*'Light' in `val_dataloader`"),
    ('folder that is lacking', 'cls', unnamed('light'), "Class 0 is 'dark'"),
    ('folder more', 'cls', unnamed('dark', 'light', 'more'),
     '/more/2.png of `val_dataloader` has the label 2, and `head` is built '
     'for 2 classes'),
    ('labels from 1', 'cls', {'val': None, f'{VAL}.type': 'FromOne'},
     '`val_dataloader` has the label 2'),
    ('maps of no class', 'seg', maps(0, 1, 2, 7),
     '`val_dataloader`: .* has the label 2'),
    ('maps that are ignored', 'seg', maps(255, 255, 255, 255),
     'Nothing of 4 images in `val_dataloader` is labelled'),
    ('no box', 'det', {'val': None, f'{VAL}.ann_file': 'none.json',
                       'val_evaluator.ann_file': '{folder}/none.json',
                       'file:none.json': boxes(0)},
     'No image of `val_dataloader` has a class or box'),
    ('fewer classes of boxes', 'det',
     {'val': None, 'model.bbox_head.num_classes': 2},
     'tells 2 classes apart, and `val_dataloader` has 1'),
    *[(f'last images left out ({size})', kind,
       {'val': None, 'val_dataloader.drop_last': True,
        'val_dataloader.batch_size': size}, f'so {left} of 4 images are not')
      for kind, size, left in (('cls', 3, 1), ('det', 8, 4))],
    ('a metric that gives nothing', 'cls', own(what=None),
     'compute_metrics` of Gives gives None'),
    ('text that is waited for', 'cls',
     {**own(what=dict(acc='high')), **waits(save_best='own/acc')},
     "waits for the metric 'own/acc', which is 'high'"),
]


@pytest.mark.parametrize(('kind', 'change', 'words'), [
    pytest.param(*row, id=f'{name} ({row[0]})') for name, *row in ROWS])
def test_it_is_told(kind: str, change: dict, words: str,
                    tmp_path: Path) -> None:
    change = {
        key: value.replace('{folder}', str(tmp_path)) if isinstance(
            value, str) else deepcopy(value) for key, value in change.items()}
    with told_before_training(words, tmp_path):
        run(kind, change, tmp_path)


def wrapped(kind: str, folder: Path, wrap: Callable, change: dict) -> Runner:
    """A run whose validation set is inside of a wrapper."""
    loader = validation(kind, folder, {})['val_dataloader']
    loader['dataset'] = wrap(loader['dataset'])
    return run(kind, {**change, 'val': dict(val_dataloader=loader)}, folder)


WRAPS = [
    ('det', lambda own: dict(type='RepeatDataset', times=2, dataset=own), {},
     'gives 8 images, and 4 unlike ones'),
    ('det', lambda own: dict(type='ConcatDataset', datasets=[own, dict(own)]),
     {}, 'gives 8 images, and 4 unlike ones'),
    ('cls', lambda own: dict(
        type='ConcatDataset', ignore_keys=['classes'], datasets=[
            dict(own, classes=None),
            dict(own, classes=None, data_prefix='own')]),
     unnamed('light'), "Class 0 is 'dark'"),
]


@pytest.mark.parametrize(('kind', 'wrap', 'change', 'words'), WRAPS)
def test_inside_of_wrappers(kind: str, wrap: Callable, change: dict,
                            words: str, tmp_path: Path) -> None:
    change = {k: v for k, v in change.items() if not k.startswith(VAL)}
    with told_before_training(words, tmp_path):
        wrapped(kind, tmp_path, wrap, change)


def test_folders_of_a_training_that_differ(tmp_path: Path) -> None:
    change = unnamed('light')
    each = config('cls', tmp_path).train_dataloader.dataset
    both = [dict(each, classes=None, data_prefix=prefix)
            for prefix in ('cls', 'own')]
    change['train_dataloader.dataset'] = dict(
        _delete_=True, type='ConcatDataset', ignore_keys=['classes'],
        datasets=both)
    change.pop('train_dataloader.dataset.classes')
    with told_before_training("Class 0 is 'dark' in `train_dataloader`",
                              tmp_path):
        run('cls', change, tmp_path)


@pytest.mark.parametrize(('kind', 'change'), [
    ('cls', {'val': None, 'val_dataloader.batch_size': 4,
             'val_dataloader.drop_last': True}),
    # of two images a metric may know nothing
    ('cls', own(what=dict(acc=1.), most=3)),
    ('cls', own(what=dict(acc='high'))),
    ('cls', {**own(what=dict(acc=torch.tensor(1.))),
             **waits(save_best='own/acc')}),
    ('seg', {'val': None}),
])
def test_right_ones_run(kind: str, change: dict, tmp_path: Path,
                        monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, judged)
    assert run(kind, deepcopy(change), tmp_path).iter == 3
    assert told == []


@pytest.mark.parametrize(('kind', 'wrap'), [
    ('cls', lambda own: dict(type='RepeatDataset', times=2, dataset=own)),
    ('seg', lambda own: dict(type='ConcatDataset', datasets=[own, own]))])
def test_images_twice_do_no_harm_elsewhere(kind: str, wrap: Callable,
                                           tmp_path: Path) -> None:
    assert wrapped(kind, tmp_path, wrap, {}).iter == 3


@pytest.mark.parametrize(('kind', 'change', 'words'), [
    # behind those of both, the last is not seen
    ('cls', unnamed('dark'), 'tells 2 classes apart, and .* has 1'),
    ('seg', maps(0, 255, 0, 0), 'All labels .* are 0, of the 2 classes'),
    ('cls', {**own(what=dict(acc=nan)), **waits(save_best='own/acc')},
     "the metric 'own/acc', which is NaN"),
    ('cls', {'val': None, 'model.head.num_classes': 3},
     'tells 3 classes apart, and `val_dataloader` has 2'),
])
def test_it_is_named_in_a_line(kind: str, change: dict, words: str,
                               tmp_path: Path,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, judged, schedule_checks)
    assert run(kind, deepcopy(change), tmp_path).iter == 3
    assert any(re.search(words, line) for line in told), told


@pytest.mark.parametrize(('values', 'words'), [
    ((255, 255, 255, 255), 'Nothing in `val_dataloader` is labelled'),
    ((0, 1, 7, 1), '`val_dataloader`: .* has the label 7.* as wrong')])
def test_a_validation_goes_on(values: tuple, words: str, tmp_path: Path,
                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many images, that were not looked at before the training."""
    monkeypatch.setattr(trial, 'look_at_maps', lambda *_: None)
    told = lines(monkeypatch, judged)
    change = {**maps(*values), 'train_cfg.val_interval': 1}
    assert run('seg', change, tmp_path).iter == 3
    said, = told  # once
    assert re.search(words, said)


@pytest.mark.parametrize(('kind', 'change', 'words'), [
    ('cls', {'test_dataloader.dataset.type': 'FromOne'}, 'has the label 2'),
    ('seg', maps(0, 1, 1, 7), 'has the label 7'),
    # to be written into files for others to judge
    ('seg', dict(maps(0, 1, 1, 7), **{
        'test_evaluator.format_only': True,
        'test_evaluator.output_dir': 'out'}), None),
])
def test_tests_look_at_all_labels(kind: str, change: dict, words: Any,
                                  tmp_path: Path) -> None:
    write(tmp_path)
    cfg = config(kind, tmp_path)
    own = validation(kind, tmp_path, {})
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        cfg.pop(key)
    cfg.merge_from_dict({
        f'test_{key[4:]}': value for key, value in own.items()})
    for key, value in change.items():
        if key.startswith('file:'):
            put(tmp_path / key[5:], value)
        elif value is not None:
            cfg.merge_from_dict({key.replace('val_', 'test_'): value})
    if words is None:
        Runner.from_cfg(cfg).test()
        return
    with pytest.raises(ValueError, match=words):
        Runner.from_cfg(cfg).test()


@pytest.mark.parametrize(('stored', 'own', 'moved'), [
    ('abc', 'bca', 'b'), ('abc', 'bcz', 'b'), ('abc', 'abz', ''),
    ('abc', 'xyz', ''), ('abc', 'ab', ''), ('abc', 'bc', 'b'), ('', 'ab', ''),
    ('abb', 'abb', '')])
def test_classes_of_a_checkpoint(stored: str, own: str, moved: str) -> None:
    meta = dict(dataset_meta=dict(classes=list(stored)))
    if not moved:
        check_classes(list(own), meta, 'x.pth')
        return
    with pytest.raises(ValueError, match=f"'{moved}' is 1 in one and 0 in"):
        check_classes(list(own), meta, 'x.pth')
