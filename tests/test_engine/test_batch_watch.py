# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Labels of each task are looked at, and those that a student does not need
are not."""

import re
from pathlib import Path
from typing import Any

import pytest
from mmengine.structures import InstanceData
from torch.utils._pytree import tree_map

import _distill
import _multitask
from _loading import lines
from _tiny import KINDS, Pictures, build_runner, fusion_neck, model_cfg, vit
from vim_mm.datasets import SoftOnly
from vim_mm.engine import batch_watch
from vim_mm.registry import DATASETS


def blank(sample: Any, kind: str) -> None:
    """Leave nothing to learn."""
    if kind == 'seg':
        sample.gt_sem_seg.data.fill_(255)
    elif kind == 'det':
        boxes = sample.gt_instances
        sample.gt_instances = boxes[boxes.labels < 0]
    else:
        sample.set_gt_label(0)


@DATASETS.register_module()
class BlankPictures(_multitask.TaskPictures):
    """Pictures without a label, or of one class."""

    def __init__(self, kind: str, **kwargs: Any) -> None:
        super().__init__(kind, **kwargs)
        self.kind = kind

    def __getitem__(self, index: int) -> dict:
        sample = super().__getitem__(index)
        blank(sample['data_samples'], self.kind)
        return sample


def train(folder: Path, iters: int = 24, **kinds: str) -> Any:
    """A run of these tasks, each with a type of data set."""
    loaders = dict.fromkeys(_multitask.TASKS)
    for kind, name in kinds.items():
        loaders[kind] = _multitask.loader(kind)
        loaders[kind]['dataset']['type'] = f'vim_mm.{name}'
    run = _multitask.build(
        folder, iters, train_dataloader=loaders,
        train_cfg=dict(type='MultiTaskTrainLoop', max_iters=iters),
        val_dataloader=None, val_evaluator=None, val_cfg=None)
    run.train()
    return run


@pytest.mark.parametrize('kind', ['det', 'seg'])
def test_a_task_without_labels(kind: str, tmp_path: Path) -> None:
    """That others have some does not hide it."""
    with pytest.raises(ValueError, match='Nothing in the whole training set '
                       f"of the task '{kind}' is labelled"):
        train(tmp_path, **{'cls': 'TaskPictures', kind: 'BlankPictures'})
    assert not list(tmp_path.glob('*.pth'))


def test_a_run_that_is_shorter_than_a_pass(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, batch_watch)
    train(tmp_path, 6, cls='TaskPictures', seg='BlankPictures')
    said, = told
    assert re.search(r'in the \d batches of the run of the task .seg. was',
                     said)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('steps', [3, 50])
def test_a_module_that_no_gradient_reaches(
        kind: str, steps: int, tmp_path: Path) -> None:
    run = build_runner(
        kind, model_cfg(kind, dict(trunk=vit(), new_module='n'),
                        fusion_neck(kind)), tmp_path, iters=steps)
    run.model.neck.register_forward_pre_hook(
        lambda _, inputs: tree_map(lambda x: x.detach(), inputs))
    if steps < 50:  # a head that begins with zeros lets none through
        run.train()
        return
    with pytest.raises(ValueError, match="No gradient has come to the module "
                       "'n' of `backbone` in the first 50 steps"):
        run.train()


@pytest.mark.parametrize(('cut', 'routes'), [
    (False, False), (True, False), (True, True)])
def test_a_task_whose_gradients_end_at_its_head(
        cut: bool, routes: bool, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of another task hide it."""
    told = lines(monkeypatch, batch_watch)
    tasks = ('cls', 'seg')
    model = _multitask.multitask_cfg(*tasks)
    if routes:  # whose loss gives experts a gradient, whatever heads do
        model.backbone = _multitask.moe()
        model.routing = dict(type='vim_mm.MutualInformation', start=0)
    run = _multitask.build(
        tmp_path, 50, model=model,
        train_dataloader={kind: _multitask.loader(kind) for kind in tasks},
        train_cfg=dict(type='MultiTaskTrainLoop', max_iters=50),
        val_dataloader=None, val_evaluator=None, val_cfg=None)
    if cut:
        run.model.models['cls'].neck.register_forward_hook(
            lambda *given: tree_map(lambda x: x.detach(), given[2]))
    run.train()
    assert [bool(re.search("No gradient has come back .* 50 steps of the task "
                           "'cls', so", each)) for each in told] == [
        True] * cut


def test_classes_that_a_task_never_shows(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, batch_watch)
    train(tmp_path, cls='BlankPictures', seg='TaskPictures')
    said, = told
    assert 'Labels [1], of the 2 classes of `tasks.cls.head`' in said


class Unlabelled(Pictures):
    """As a pipeline gives pictures without annotations."""

    def __getitem__(self, index: int) -> dict:
        sample = super().__getitem__(index)
        data = sample['data_samples']
        if 'gt_instances' in data:
            data.gt_instances = InstanceData()
        for field in ('gt_label', 'gt_sem_seg'):
            if field in data:
                delattr(data, field)
        return sample


@pytest.mark.parametrize('kind', KINDS)
def test_a_student_that_needs_no_labels(kind: str, tmp_path: Path) -> None:
    loader = dict(
        dataset=SoftOnly(Unlabelled(kind)), batch_size=4, num_workers=0,
        sampler=dict(type='InfiniteSampler', shuffle=True),
        collate_fn=dict(type='pseudo_collate'))
    criteria = {('backbone[0]', 'backbone[0]'): _distill.FEATURES}
    run = build_runner(
        kind, _distill.distiller_cfg(tmp_path, kind, criteria), tmp_path,
        iters=3, train_dataloader=loader)
    run.train()
    assert run.iter == 3


@pytest.mark.parametrize('kind', KINDS)
def test_a_model_without_a_teacher_needs_labels(kind: str,
                                                tmp_path: Path) -> None:
    loader = dict(
        dataset=SoftOnly(Unlabelled(kind)), batch_size=4, num_workers=0,
        sampler=dict(type='InfiniteSampler', shuffle=True),
        collate_fn=dict(type='pseudo_collate'))
    run = build_runner(
        kind, model_cfg(kind, dict(trunk=vit(), new_module='n'),
                        fusion_neck(kind)),
        tmp_path, iters=3, train_dataloader=loader)
    with pytest.raises(ValueError, match='is of a vim_mm.SoftOnly, .* no Dis'):
        run.train()
    assert run.iter == 0
