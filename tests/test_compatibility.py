# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What version 0.1.0 wrote is read, and gives what it gave then."""

import shutil
from pathlib import Path
from typing import Dict

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.runner import Runner
from safetensors.torch import load_file
from torch import Tensor

from _tiny import SIZE, build_backbone, fill, save_trunk
from vim_mm.models import adapters, necks
from vim_mm.models.adapters import SideLadder
from vim_mm.zoo import Zoo, save_module, trunk_fingerprint

DATA = Path(__file__).parent / 'data' / '0.1.0'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to run in, since paths of the config are relative."""
    folder = tmp_path / '0.1.0'
    shutil.copytree(DATA, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope='module')
def expected() -> Dict[str, Tensor]:
    return load_file(DATA / 'expected.safetensors')


def close(value: Tensor, expected: Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=atol)


def build(**backbone) -> BaseModel:
    """The run's model with other arguments of its backbone, in eval mode."""
    cfg = Config.fromfile('run.py')
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.update(new_module=None, fusion=None, **backbone)
    return MODELS.build(cfg.model).eval()


@torch.no_grad()
def logits(model: BaseModel, x: Tensor) -> Tensor:
    """What a classifier says in eval mode, whatever mode it is in."""
    training = model.training
    model.eval()
    scores = model.head(model.neck(model.backbone(x)))
    model.train(training)
    return scores


# -------------------------------------------------------------------- zoo


def test_zoo_is_whole(folder):
    zoo = Zoo('zoo')
    assert zoo.names() == ['first', 'second'] and zoo.verify() == []
    trunk = build(modules=[]).backbone.trunk
    for name in zoo.names():
        card, tensors = zoo.load(name)
        assert card.vim_mm_version == '0.1.0' and card.task == 'cls'
        assert card.trunk['fingerprint'] == trunk_fingerprint(
            trunk, card.slots)
        assert sum(t.numel() for t in tensors.values()) == card.num_params


@torch.no_grad()
def test_modules_give_their_outputs(folder, expected):
    x = expected['x']
    close(build(modules=[]).backbone(x)[1], expected['zoo.trunk.1'])
    for name in ('first', 'second'):
        alone = build(modules=[name]).backbone(x)
        for level, value in enumerate(alone):
            close(value, expected[f'zoo.{name}.{level}'])
    together = build(modules=['first', 'second']).backbone(x)
    for name, levels in zip(('first', 'second'), together):
        for level, value in enumerate(levels):
            close(value, expected[f'zoo.{name}.{level}'])


def test_head_gives_its_outputs(folder, expected):
    model = build(modules=['first'])
    head = Zoo('zoo').load_head('first')
    missing, unexpected = model.load_state_dict(head, strict=False)
    assert not unexpected
    assert all(key.startswith('backbone.') for key in missing)
    close(logits(model, expected['x']), expected['zoo.first.logits'])


# ------------------------------------------------------------------ names


def test_a_ladder_goes_by_its_old_name(tmp_path: Path) -> None:
    adapter = dict(type='PluginNeck', hidden_dims=3)
    trunk = save_trunk(tmp_path / 'trunk.pth')
    old = build_backbone(trunk, new_module='old', adapter=adapter)
    new = build_backbone(
        trunk, new_module='old', adapter=dict(adapter, type='SideLadder'))
    fill(old.bank)
    x = torch.randn(2, 3, SIZE, SIZE)
    new.load_state_dict(old.state_dict())  # keys of a checkpoint
    torch.testing.assert_close(new(x), old(x), rtol=0, atol=0)
    save_module(old, 'old', tmp_path / 'zoo')
    card = Zoo(tmp_path / 'zoo').card('old')
    assert card.kind == card.adapter['type'] == 'PluginNeck'
    again = build_backbone(
        trunk, zoo=str(tmp_path / 'zoo'), modules=['old'])
    torch.testing.assert_close(again(x), old(x), rtol=0, atol=0)
    assert type(again.bank.adapter('old', 'outputs.0')) is SideLadder
    # beside new ones it runs as one with them
    again.add('new', dict(type='SideLadder', hidden_dims=3))
    again.set_fusion(dict(type='FixedFusion', weights=dict(old=1., new=1.)))
    torch.testing.assert_close(again(x), old(x))
    again.merge()
    torch.testing.assert_close(again(x), old(x))


@pytest.mark.parametrize('scope', ['', 'vim_mm.'])
def test_parts_go_by_their_old_names(scope: str) -> None:
    assert adapters.PluginNeck is SideLadder
    assert necks.TokenPooling is necks.StandardizedPooling
    with DefaultScope.overwrite_default_scope('vim_mm'):
        neck = MODELS.build(dict(type=f'{scope}TokenPooling', in_channels=6))
    assert type(neck) is necks.StandardizedPooling
    built = adapters.build_adapter(dict(type=f'{scope}PluginNeck'), 8)
    assert type(built) is SideLadder


# ------------------------------------------------------------- checkpoint


class Look(Hook):
    """Notes the logits where the model holds what it is judged by."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.seen: Dict[str, Tensor] = {}

    def after_test_epoch(self, runner, metrics=None):
        self.seen['tested'] = logits(runner.model, self.x)

    def before_train(self, runner):
        self.seen['resumed'] = logits(runner.model, self.x)

    def after_train(self, runner):
        self.seen['trained_on'] = logits(runner.model, self.x)


def runner_with(look: Look, priority: str, name: str, **changes) -> Runner:
    cfg = Config.fromfile('run.py')
    cfg.merge_from_dict(dict(load_from='iter_4.pth', **changes))
    # one of this name may be there of another test
    cfg.experiment_name = f'compatibility_{name}'
    runner = Runner.from_cfg(cfg)
    runner.register_hook(look, priority=priority)
    return runner


def test_checkpoint_is_tested(folder, expected):
    look = Look(expected['x'])
    # before the averages of the weights leave the model again
    metrics = runner_with(look, 'VERY_HIGH', 'test').test()
    assert metrics == {'accuracy/top1': 100.}
    close(look.seen['tested'], expected['run.tested'])


def test_checkpoint_is_resumed(folder, expected):
    look = Look(expected['x'])
    runner = runner_with(look, 'LOWEST', 'resume', resume=True,
                         train_cfg=dict(max_iters=6))
    runner.train()
    assert runner.iter == 6
    close(look.seen['resumed'], expected['run.resumed'])
    # two steps of AdamW magnify how another machine rounds
    close(look.seen['trained_on'], expected['run.trained_on'], 1e-4)
    assert runner.message_hub.get_scalar('train/loss').data[0].size == 6


def test_names_and_shapes_of_the_checkpoint_are_ours(folder):
    stored = torch.load('iter_4.pth', weights_only=False)
    cfg = Config.fromfile('run.py')
    init_default_scope(cfg.default_scope)
    own = MODELS.build(cfg.model).state_dict()
    shapes = {key: value.shape for key, value in stored['state_dict'].items()}
    # up to 0.1.0 there was none
    own.pop('backbone.fusion.strength_of_default')
    assert shapes == {key: value.shape for key, value in own.items()}
