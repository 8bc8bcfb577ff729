# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A midstream run leaves its module, card and head in a zoo."""

import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Sequence

import pytest
import torch
from mmdet.datasets import MultiImageMixDataset
from mmengine.dataset import BaseDataset, ClassBalancedDataset, RepeatDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook
from mmengine.optim import OptimWrapper
from mmengine.registry import METRICS
from mmengine.runner import Runner
from mmpretrain.datasets import KFoldDataset
from torch import nn
from torch.utils.data import ConcatDataset, Subset

from _tiny import (Pictures, build_backbone, build_model, build_runner, fill,
                   fusion_neck, model_cfg, same, save_trunk, snapshot, vit)
from vim_mm.engine.data_sets import num_images
from vim_mm.engine.gradients import Gradients
from vim_mm.engine.hooks import ModuleToZooHook
from vim_mm.models.moe import save_moe
from vim_mm.registry import MODELS
from vim_mm.utils.kinds import check_kind
from vim_mm.zoo import Zoo, ZooError, head_state

CARD = dict(dataset='squares', task='cls', licence='CC0-1.0')


@METRICS.register_module(force=True)
class TwoNumbers(BaseMetric):
    """One finite, one as mIoU of classes that do not occur."""

    def process(self, data_batch: dict, data_samples: Sequence) -> None:
        self.results += [1] * len(data_samples)

    def compute_metrics(self, results: list) -> dict:
        return dict(right=float(sum(results)), mIoU=float('nan'))


def runner(folder: Path, hook: dict = {}, ema: bool = False,
           **backbone) -> Runner:
    trunk = save_trunk(folder / 'trunk.pth')
    backbone = dict(dict(trunk=trunk, new_module='n'), **backbone)
    hooks = [
        dict(
            dict(type='vim_mm.ModuleToZooHook', zoo=str(folder / 'zoo')),
            **dict(CARD, **hook))
    ]
    if ema:
        hooks.append(dict(type='EMAHook', momentum=0.5, update_buffers=True))
    loader = dict(
        dataset=Pictures('cls'),
        batch_size=4,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='pseudo_collate'))
    return build_runner(
        'cls',
        model_cfg('cls', backbone, fusion_neck('cls')),
        folder,
        val_dataloader=loader,
        val_evaluator=dict(type='TwoNumbers'),
        val_cfg=dict(),
        train_cfg=dict(by_epoch=False, max_iters=4, val_interval=4),
        custom_hooks=hooks)


@pytest.mark.parametrize('ema', [False, True])
def test_module_card_and_head(tmp_path: Path, ema: bool) -> None:
    run = runner(tmp_path, ema=ema)
    run.train()
    zoo = Zoo(tmp_path / 'zoo')
    assert zoo.names() == ['n'] and zoo.verify() == []
    card, tensors = zoo.load('n')
    assert (card.task, card.dataset, card.licence) == ('cls', 'squares',
                                                       'CC0-1.0')
    assert card.num_train == 8
    assert card.metrics == [dict(name='right', value=8., n=8)]
    assert card.training['iterations'] == 4

    model = run.model
    if ema:
        model, = (h.ema_model.module for h in run.hooks
                  if isinstance(h, EMAHook))
        assert not same(model.backbone.bank.export('n'),
                        run.model.backbone.bank.export('n'))
    assert same(tensors, model.backbone.bank.export('n'))
    assert same(zoo.load_head('n'), head_state(model))
    assert any(v.abs().sum() > 0 for k, v in tensors.items() if '.up.' in k)

    # it works beside its trunk, with nothing but the zoo
    backbone = build_backbone(
        save_trunk(tmp_path / 'trunk.pth'), modules=['n'],
        zoo=str(tmp_path / 'zoo'))
    model.eval()
    x = torch.randn(2, 3, 56, 56)
    assert all(map(torch.equal, backbone(x), model.backbone(x)))
    assert same(snapshot(backbone.trunk), snapshot(model.backbone.trunk))


def test_what_could_not_be_written_is_refused_at_once(tmp_path: Path) -> None:
    run = runner(tmp_path)
    run.train()
    with pytest.raises(ZooError, match="holds a module 'n' already"):
        runner(tmp_path).train()
    # before anything that takes long
    order = [type(hook).__name__ for hook in run.hooks]
    assert order.index('ModuleToZooHook') < order.index('IterTimerHook')
    again = runner(tmp_path, hook=dict(overwrite=True))
    again.train()
    with pytest.raises(ZooError, match="its task is 'detection'"):
        runner(tmp_path, hook=dict(task='detection', overwrite=True)).train()
    (tmp_path / 'file').touch()
    with pytest.raises(ZooError, match="zoo '.*file/zoo' cannot be written"):
        runner(tmp_path, hook=dict(zoo=str(tmp_path / 'file/zoo'))).train()
    nothing = runner(tmp_path, new_module=None)
    with pytest.raises(ValueError, match='new_module'):
        ModuleToZooHook(str(tmp_path / 'zoo'), **CARD).before_train(nothing)


def test_an_adaptation_is_published_by_the_tool(tmp_path: Path) -> None:
    path = str(tmp_path / 'trunk.safetensors')
    trunk = dict(
        type='vim_mm.to_moe', trunk=vit(), num_experts=4, k=2, tasks=['a'])
    save_moe(MODELS.build(trunk), trunk, path)
    cfg = model_cfg('cls', {})
    cfg.backbone = dict(type='vim_mm.load_moe', checkpoint=path, task='a',
                        train='routers')
    cfg.neck = dict(type='mmpretrain.GlobalAveragePooling')
    hook = dict(CARD, type='vim_mm.ModuleToZooHook', zoo=str(tmp_path / 'z'))
    run = build_runner('cls', cfg, tmp_path / 'run', custom_hooks=[hook])
    with pytest.raises(ValueError, match='`vim-mm zoo save') as error:
        run.train()
    assert '\n' not in str(error.value) and run.iter == 0


def test_what_learned_nothing_is_not_saved(tmp_path: Path) -> None:
    run = runner(tmp_path)
    # mmengine's `activation_checkpointing` ends the graph like this
    run.model.backbone.forward = torch.no_grad()(run.model.backbone.forward)
    with pytest.raises(ZooError, match='no gradient has reached it'):
        run.train()
    assert not (tmp_path / 'zoo' / 'n').exists()


def test_what_weight_decay_alone_moved_is_not_saved(tmp_path: Path) -> None:
    run = runner(tmp_path)
    fill(run.model.backbone.bank)
    for param in run.model.backbone.bank.parameters():
        param.register_hook(torch.zeros_like)
    before = run.model.backbone.bank.export('n')
    with pytest.raises(ZooError, match='no gradient has reached it'):
        run.train()
    assert not same(before, run.model.backbone.bank.export('n'))
    assert not (tmp_path / 'zoo' / 'n').exists()


@pytest.mark.parametrize('first', [1, 60, 501])
def test_a_gradient_may_come_late(first: int) -> None:
    layer = nn.Linear(2, 2)
    wrapper = OptimWrapper(torch.optim.SGD(layer.parameters(), lr=0.1))
    several = [
        Gradients(SimpleNamespace(optim_wrapper=wrapper), layer.parameters())
        for _ in range(2)
    ]
    for step in range(1, 600):
        wrapper.update_params(layer.weight.sum() * (step == first))
        assert [each.came() for each in several] == [step >= first] * 2


@pytest.mark.parametrize('loop', [
    dict(by_epoch=False, max_iters=0), dict(by_epoch=True, max_epochs=0)])
def test_a_run_without_a_step_is_refused_at_once(loop: dict,
                                                 tmp_path: Path) -> None:
    run = runner(tmp_path)
    run._train_loop = loop
    # it cannot be built for no steps
    run.param_schedulers = dict(
        type='OneCycleLR', eta_max=1., total_steps=0, by_epoch=False)
    with pytest.raises(ValueError, match='The run has no iteration'):
        run.train()


@pytest.mark.parametrize('adapter', [
    'ConvPass', 'BottleneckAdapter', 'LoRA', 'SideLadder'])
def test_what_never_ran_is_not_saved(adapter: str, tmp_path: Path) -> None:
    run = runner(tmp_path, adapter=dict(type=adapter))
    hook, = (h for h in run.hooks if isinstance(h, ModuleToZooHook))
    hook.before_train(run)
    with pytest.raises(ZooError, match="'n' has learned nothing in 0 iter.*"
                       'the run has made no step'):
        hook.after_train(run)
    assert not (tmp_path / 'zoo' / 'n').exists()
    # weight decay alone moves what comes before the up projection
    for name, param in run.model.backbone.bank.named_parameters():
        if '.up.' not in name:
            param.data.mul_(0.9)
    run.train_loop._iter = 4
    with pytest.raises(ZooError, match='adds nothing to its trunk after 4'):
        hook.after_train(run)


def test_a_run_that_is_resumed_at_its_end_saves_what_it_learned(
        tmp_path: Path) -> None:
    runner(tmp_path).train()
    shutil.rmtree(tmp_path / 'zoo')
    again = runner(tmp_path)
    again._load_from = str(tmp_path / 'iter_4.pth')
    again._resume = True
    again.train()
    assert again.iter == 4 and Zoo(tmp_path / 'zoo').names() == ['n']


def test_a_module_no_task_weighs_is_refused(tmp_path: Path) -> None:
    run = runner(tmp_path, new_module=None)
    backbone = run.model.backbone
    for name in 'an':
        backbone.add(name, dict(type='ConvPass', hidden_dims=2))
    backbone.set_fusion(dict(type='EnsMoE', tasks=dict(t=['a'])))
    backbone.new_module = 'n'
    with pytest.raises(ValueError, match="'t' does not weigh the new module"):
        ModuleToZooHook(str(tmp_path / 'zoo'), **CARD).before_train(run)


class Labels(BaseDataset):
    """Two images of a class of their own."""

    def __init__(self, ann_file: str, **_: Any) -> None:
        super().__init__(ann_file, lazy_init=True,
                         metainfo=dict(classes=['a']))
        self.data_list = [dict(), dict()]
        self.serialize_data, self._fully_initialized = False, True

    def get_cat_ids(self, index: int) -> list:
        return [0]


@pytest.mark.parametrize('wrapped, number', [
    (lambda a, b: a, 2),
    (lambda a, b: RepeatDataset(a, times=3), 2),
    (lambda a, b: ConcatDataset([RepeatDataset(a, times=3)]), 2),
    (lambda a, b: ConcatDataset([a, a, Labels('a')]), 2),
    (lambda a, b: ConcatDataset([ClassBalancedDataset(a, 9.), b]), 4),
    (lambda a, b: MultiImageMixDataset(a, [dict(type='mmdet.Resize',
                                                scale=(8, 8))]), 2),
    (lambda a, b: KFoldDataset(dict(type=Labels, ann_file='a'), fold=1,
                               num_splits=2), 1),
    (lambda a, b: Subset(a, [1]), 1),
    (lambda a, b: ConcatDataset([Subset(a, [1]), Subset(a, [0, 1])]), 2),
    (lambda a, b: [1, 2, 3], 3)])
def test_each_image_is_counted_once(wrapped: Callable, number: int) -> None:
    assert num_images(wrapped(Labels('a'), Labels('b'))) == number


@pytest.mark.parametrize('kind, task, right', [
    ('cls', 'cls', True), ('cls', 'det', False), ('det', 'cls', False),
    ('det', 'det', True), ('seg', 'det', False), ('seg', 'seg', True)])
def test_the_card_names_the_kind_of_task(kind: str, task: str,
                                         right: bool) -> None:
    model = build_model(kind, dict(trunk=vit(), new_module='n'))
    with nullcontext() if right else pytest.raises(
            ValueError, match=f"`x` is '{task}', and .* learns '{kind}'"):
        check_kind(model, task, 'x')
    check_kind(nn.Linear(1, 1), task, 'x')


def test_panoptic_detectors_may_be_of_two_kinds() -> None:
    model = build_model('det', dict(trunk=vit(), new_module='n'))
    model.semantic_head = nn.Identity()
    check_kind(model, 'seg', 'x')
    with pytest.raises(ValueError, match="learns 'det'"):
        check_kind(model, 'cls', 'x')


def test_a_zoo_under_the_home_folder(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    runner(tmp_path, dict(zoo='~/mine')).train()
    assert Zoo(tmp_path / 'mine').names() == ['n']
    assert Zoo('~/mine').names() == ['n'] and not Path('~').exists()
