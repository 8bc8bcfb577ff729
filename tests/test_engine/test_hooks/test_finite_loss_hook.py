# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A loss that is no number ends the run, and spoils no checkpoint."""

from pathlib import Path
from typing import Any, List

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import nn

from _tiny import (KINDS, build_runner, fusion_neck, model_cfg, same, snapshot,
                   vit)
from vim_mm.engine.first_bad import bad_weight

HEADS = dict(cls='head.fc', det='bbox_head.conv_cls',
             seg='decode_head.conv_seg')


class Spoil(Hook):
    """Lets a part give NaN for some iterations."""

    priority = 'LOWEST'

    def __init__(self, part: str, step: int, steps: int = 99) -> None:
        self.part, self.step, self.steps = part, step, steps
        self.before: dict = {}

    def before_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        part = runner.model.get_submodule(self.part)
        if runner.iter == self.step:
            self.before = snapshot(runner.model)
            self.handle = part.register_forward_hook(
                lambda module, inputs, output: output * float('nan'))
        if runner.iter == self.step + self.steps:
            self.handle.remove()


class SpoilWeight(Hook):
    """A gradient that was none has reached a weight, the loss was one."""

    priority = 'HIGHEST'

    def __init__(self, part: str, step: int) -> None:
        self.part, self.step = part, step

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        if runner.iter + 1 == self.step:
            part = runner.model.get_submodule(self.part)
            part.weight.data.view(-1)[0] = float('nan')


@OPTIM_WRAPPERS.register_module(force=True)
class Scaling(OptimWrapper):
    """Leaves out steps whose gradients are none, as a loss scaler does."""

    loss_scaler = None

    def step(self, **kwargs) -> None:
        grads = [p.grad for g in self.param_groups for p in g['params']
                 if p.grad is not None]
        if all(grad.isfinite().all() for grad in grads):
            super().step(**kwargs)


def runner(kind: str, folder: Path, hooks: List[Hook], **kwargs) -> Runner:
    model = model_cfg(
        kind, dict(trunk=vit(), new_module='n'), fusion_neck(kind))
    checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=1,
                      max_keep_ckpts=1)
    return build_runner(
        kind, model, folder, custom_hooks=hooks,
        default_hooks=dict(checkpoint=checkpoint),
        **dict(dict(iters=9), **kwargs))


@pytest.mark.parametrize('kind', KINDS)
def test_the_part_and_the_loss_are_named(kind: str, tmp_path: Path) -> None:
    spoil = Spoil(HEADS[kind], 3)
    run = runner(kind, tmp_path, [spoil])
    with pytest.raises(ValueError, match='loss is nan in iteration 4: '
                       rf'`{HEADS[kind]}` is the first.*not finite are '
                       r'.*loss.*last checkpoint is .*iter_3\.pth'):
        run.train()
    # the step was not taken, and the good checkpoint is there
    assert same(spoil.before, snapshot(run.model)) or kind == 'seg'
    assert bad_weight(run.model) is None
    assert [p.name for p in tmp_path.glob('*.pth')] == ['iter_3.pth']


@pytest.mark.parametrize('part', ['backbone.bank', 'backbone.trunk.layers.1'])
def test_a_part_of_the_backbone_is_named(part: str, tmp_path: Path) -> None:
    name = next(
        name for name, module in runner('cls', tmp_path, []).model
        .named_modules() if name.startswith(part) and
        isinstance(module, nn.Linear))
    run = runner('cls', tmp_path / 'run', [Spoil(name, 1)])
    with pytest.raises(ValueError, match=f'`{name}` is the first part'):
        run.train()


def test_weights_that_are_none_are_not_saved(tmp_path: Path) -> None:
    run = runner('cls', tmp_path, [SpoilWeight('head.fc', 3)])
    with pytest.raises(ValueError, match='weights `head.fc.weight` are not '
                       r'finite after iteration 3.*iter_2\.pth'):
        run.train()
    assert [p.name for p in tmp_path.glob('*.pth')] == ['iter_2.pth']


def test_weights_that_are_none_are_named(tmp_path: Path) -> None:
    run = build_runner(
        'cls',
        model_cfg('cls', dict(trunk=vit(), new_module='n'),
                  fusion_neck('cls')), tmp_path, iters=9,
        custom_hooks=[SpoilWeight('head.fc', 3)])
    with pytest.raises(ValueError, match='iteration 4: the weights '
                       '`head.fc.weight` are not finite, since the step '
                       'before'):
        run.train()


@pytest.mark.parametrize(('steps', 'ends'), [(4, False), (5, True)])
def test_a_loss_scaler_may_leave_steps_out(steps: int, ends: bool,
                                           tmp_path: Path) -> None:
    run = runner(
        'cls', tmp_path, [Spoil('head.fc', 1, steps=steps)],
        optim_wrapper=dict(type='Scaling',
                           optimizer=dict(type='SGD', lr=0.1)))
    if ends:
        with pytest.raises(ValueError, match='nan in iteration 6'):
            run.train()
    else:
        run.train()
    assert bad_weight(run.model) is None


def test_a_model_of_a_library_is_left_alone(tmp_path: Path) -> None:
    model = model_cfg('cls', vit(),
                      dict(type='mmpretrain.GlobalAveragePooling'))
    del model.backbone.probe_size
    run = build_runner('cls', model, tmp_path, iters=3,
                       custom_hooks=[Spoil('head.fc', 1)])
    run.train()
    assert run.iter == 3 and bad_weight(run.model) is not None


def test_the_weights_that_learn_are_looked_at() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert bad_weight(model) is None
    model[0].weight.data[0, 0] = float('inf')
    assert bad_weight(model) == '0.weight'
    model[0].requires_grad_(False)
    assert bad_weight(model) is None
    assert bad_weight(model.requires_grad_(False)) is None
    assert torch.isinf(model[0].weight).any()


@pytest.mark.parametrize(('part', 'words'), [
    ('neck', r'`neck.* is the first part whose output is not finite'),
    ('data', '`data_preprocessor` is the first part'),
    ('weight', r'weights `bbox_head.* are not finite, since the step before'),
])
@pytest.mark.parametrize('step', [0, 2])
def test_a_head_that_asserts(part: str, words: str, step: int,
                             tmp_path: Path) -> None:
    """CenterNet asserts that boxes are finite, so no loss ever comes."""
    cfg = Config.fromfile('configs/_base_/models/anchor_free_det.py').model
    cfg.backbone = dict(cfg.backbone, trunk=vit(), new_module='n')
    cfg.data_preprocessor = dict(
        type='mmdet.DetDataPreprocessor', mean=[9.] * 3, std=[9.] * 3,
        pad_size_divisor=14)
    cfg.neck.update(sources=[[2]], scales=[1])
    cfg.bbox_head.update(num_classes=2, strides=[14],
                         regress_ranges=[(-1, 99)])
    run = build_runner('det', cfg, tmp_path, iters=4)

    class Spoils(Hook):
        """Lets values be none from some step on."""

        def before_train_iter(self, runner: Runner, batch_idx: int,
                              data_batch: dict) -> None:
            if runner.iter < step or part == 'weight':
                return
            if part == 'data':
                data_batch['inputs'] = [
                    image * float('inf') for image in data_batch['inputs']]
            else:
                runner.model.neck.register_forward_hook(lambda *given: tuple(
                    level * float('nan') for level in given[2]))

        def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
            if part == 'weight' and runner.iter + 1 >= step:
                runner.model.bbox_head.conv_reg.weight.data.fill_(float('nan'))

    run.register_hook(Spoils())
    with pytest.raises(ValueError, match=f'^There is no loss in iteration .*'
                       f'{words}.*lower `optim_wrapper.optimizer.lr`'):
        run.train()


def test_weights_of_a_file_that_are_none(tmp_path: Path) -> None:
    class Loads(Hook):
        """As if they had come by `load_from`."""

        def before_train(self, runner: Runner) -> None:
            runner.model.head.fc.weight.data.fill_(float('nan'))

    run = runner('cls', tmp_path, [Loads()])
    with pytest.raises(ValueError, match='`head.fc.weight` are not finite, '
                       'since before the first step, as a file'):
        run.train()


def test_losses_that_nobody_adds_up(tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    run = runner('cls', tmp_path, [])
    original = run.model.head.loss
    monkeypatch.setattr(run.model.head, 'loss', lambda *args, **kwargs: dict(
        cross_entropy=original(*args, **kwargs)['loss']))
    with pytest.raises(ValueError, match="gives no loss: .* 'loss' in it"):
        run.train()
