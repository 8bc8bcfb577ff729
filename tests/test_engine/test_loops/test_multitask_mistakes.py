# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A run of several tasks that cannot work says so before it trains."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.runner import Runner
from torch.utils.data import RandomSampler

from _multitask import METRICS, TASKS, loader, multitask_cfg, run_cfg
from vim_mm.registry import DATA_SAMPLERS

LOOP = dict(type='MultiTaskTrainLoop', max_iters=2)


@DATA_SAMPLERS.register_module()
class OwnSampler(RandomSampler):

    def __init__(self, dataset: Any, seed: int) -> None:
        super().__init__(dataset)


def loaders(**changes: Any) -> dict:
    return {**{task: loader(task) for task in TASKS}, **changes}


def without(cfg: dict, key: str) -> dict:
    return {k: v for k, v in cfg.items() if k != key}


MISTAKES = dict(
    weight_of_no_task=(dict(train_cfg=dict(LOOP, weights=dict(pose=1))),
                       "`train_cfg.weights` names 'pose'"),
    weight_missing=(dict(train_cfg=dict(LOOP, weights=dict(cls=1, det=1))),
                    "`train_cfg.weights` lacks the task 'seg'"),
    weight_negative=(dict(
        train_cfg=dict(LOOP, weights=dict(cls=1, det=-1, seg=0))),
                     '`train_cfg.weights.det` is -1'),
    weights_all_zero=(dict(
        train_cfg=dict(LOOP, weights=dict(cls=0, det=0, seg=0))),
                      'All `train_cfg.weights` are 0'),
    weight_without_data=(dict(
        train_cfg=dict(LOOP, weights=dict(cls=1, det=1, seg=1)),
        train_dataloader=loaders(det=None)), '`train_dataloader.det` is None'),
    weights_of_all=(dict(train_cfg=dict(LOOP, weights=[15, 10, 5])),
                    '`train_cfg.weights` is .* give a dict by task'),
    loaders_in_a_list=(dict(train_dataloader=[loader('cls')]),
                       '`train_dataloader` is .* give a dict by task'),
    a_name_for_a_loader=(dict(train_dataloader=loaders(det='x')),
                         "`train_dataloader.det` is 'x'; give a config"),
    no_data_set=(dict(
        train_dataloader=loaders(det=without(loader('det'), 'dataset'))),
                 '`train_dataloader.det` has no `dataset`'),
    ordinary_loop=(dict(train_cfg=dict(by_epoch=True, max_epochs=1)),
                   "set `train_cfg.type` to 'vim_mm.MultiTaskTrainLoop'"),
    ordinary_validation=(dict(val_cfg={}),
                         "set `val_cfg.type` to 'vim_mm.MultiTaskValLoop'"),
    loader_of_no_task=(dict(train_dataloader=loaders(pose=loader('cls'))),
                       "`train_dataloader` names 'pose'"),
    loader_missing=(dict(train_dataloader=without(loaders(), 'det')),
                    "`train_dataloader` lacks the task 'det'"),
    no_loaders=(dict(train_dataloader=dict.fromkeys(TASKS)),
                '`train_dataloader` leaves out all tasks'),
    loader_of_one_task=(dict(train_dataloader=loader('cls')),
                        '`train_dataloader` is that of one task'),
    no_batch_size=(dict(
        train_dataloader=loaders(det=without(loader('det'), 'batch_size'))),
                   '`train_dataloader.det` has no `batch_size`'),
    no_batch_size_of_validation=(dict(
        val_dataloader=loaders(det=without(loader('det'), 'batch_size'))),
                                 '`val_dataloader.det` has no `batch_size`'),
    empty=(dict(
        train_dataloader=loaders(det=loader('det', dataset=dict(num=0)))),
           r'data set \w+\(.*\) is empty'),
    empty_validation=(dict(
        val_dataloader=loaders(seg=loader('seg', dataset=dict(num=0)))),
                      r'data set \w+\(.*\) is empty'),
    own_sampler=(dict(
        train_dataloader=loaders(
            det=loader('det', sampler=dict(type='vim_mm.OwnSampler')))),
                 "loader of the task 'det' has a OwnSampler"),
    evaluator_of_no_task=(dict(val_evaluator=dict(METRICS, pose={})),
                          "`val_evaluator` names 'pose'"),
    evaluator_missing=(dict(val_evaluator=without(METRICS, 'seg')),
                       "`val_evaluator` lacks the task 'seg'"),
    evaluator_of_one_task=(dict(val_evaluator=dict(type='Accuracy')),
                           '`val_evaluator` is that of one task'),
    evaluator_left_out=(dict(val_evaluator=dict(METRICS, seg=None)),
                        "'seg' is in one of them only"),
    classes=(dict(
        train_dataloader=loaders(
            det=loader('det', dataset=dict(classes=('a', 'b'))))),
             "Class 0 is 'a' in `train_dataloader.det.dataset`"),
    classes_of_validation=(dict(
        val_dataloader=loaders(
            seg=loader('seg', dataset=dict(classes=tuple('abc'))))),
                           "'a' in `val_dataloader.seg.dataset`"),
    order_of_classes=(dict(
        val_dataloader=loaders(
            seg=loader('seg', dataset=dict(classes=('square', 'noise'))))),
                      "classes of the task 'seg' are .* in training"),
    scaled_rate=(dict(auto_scale_lr=dict(enable=True, base_batch_size=8)),
                 'differs from task to task'),
    endless_validation=(dict(
        val_dataloader=loaders(det=loader(
            'det', train=False, sampler=dict(type='InfiniteSampler')))),
                        '`val_dataloader.det` has an InfiniteSampler'),
    metric_of_no_task=(dict(default_hooks=dict(checkpoint=dict(
        type='CheckpointHook', by_epoch=False, save_best='mIoU'))),
                       "waits for the metric 'mIoU', .* det/pascal_voc/…"),
    metric_of_another_kind=(dict(
        val_evaluator=dict(METRICS, cls=dict(type='mmseg.IoUMetric'))),
                            r'validation would fail \(`val_evaluator.cls`'),
    rates_by_epoch=(dict(
        param_scheduler=dict(type='CosineAnnealingLR', T_max=9)),
                    'counts epochs, and the run iterations'),
    does_not_learn=(dict(model=multitask_cfg(learn_tasks=['cls'])),
                    'is drawn, but those that learn are'),
)


@pytest.mark.parametrize('name', list(MISTAKES))
def test_mistakes_are_refused_before_training(
        tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, sentence = MISTAKES[name]
    cfg = run_cfg(tmp_path, train_cfg=LOOP)
    cfg.update(change)
    runner = Runner.from_cfg(ConfigDict(cfg))
    runner.model.train_step = None  # nothing is trained
    with pytest.raises(ValueError, match=sentence) as error:
        runner.train()
    assert str(error.value).endswith('.')
    assert not list(tmp_path.glob('*.pth'))


def test_loops_are_for_models_of_several_tasks(tmp_path: Path) -> None:
    cfg = run_cfg(tmp_path, model=dict(multitask_cfg().tasks.seg))
    cfg['model']['backbone'] = multitask_cfg().backbone
    cfg['default_scope'] = 'mmseg'
    for loop in ('train_cfg', 'val_cfg'):
        cfg[loop]['type'] = f'vim_mm.{cfg[loop]["type"]}'
    for call in ('train', 'val'):
        with pytest.raises(ValueError, match='model is a EncoderDecoder; use'):
            getattr(Runner.from_cfg(ConfigDict(cfg)), call)()


def test_a_task_may_be_left_out(tmp_path: Path) -> None:
    """By weight, or by None for its data."""
    runner = Runner.from_cfg(
        ConfigDict(
            run_cfg(
                tmp_path,
                train_cfg=LOOP,
                train_dataloader=loaders(det=None),
                val_dataloader=loaders(cls=None),
                val_evaluator=dict(METRICS, cls=None))))
    runner.model.init_weights()
    before = runner.model.models.det.bbox_head.retina_cls.weight.clone()
    runner.train()
    after = runner.model.models.det.bbox_head.retina_cls.weight
    assert torch.equal(before, after)
    judged = {
        key.split('/')[1]
        for key in runner.message_hub.log_scalars if key.startswith('val/')
    }
    assert judged - {'time', 'data_time'} == {'det', 'seg'}


def test_the_first_step_of_a_later_task(tmp_path: Path) -> None:
    """What a library notices there is about the config, too."""
    model = multitask_cfg()
    model.tasks.det.neck.in_channels = [8, 16, 33]
    runner = Runner.from_cfg(
        ConfigDict(
            run_cfg(
                tmp_path, model=model, val_dataloader=None, val_cfg=None,
                val_evaluator=None, train_dataloader=loaders(seg=None),
                train_cfg=dict(LOOP, max_iters=40,
                               weights=dict(cls=5, det=1, seg=0)))))
    with pytest.raises(ValueError, match=r'fails in `model\.models\.det\.neck'
                       r'.* before a step is done.* 33 channels'):
        runner.train()
    assert runner.iter
