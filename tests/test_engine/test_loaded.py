# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Hooks that prepare a model leave alone what `load_from` brought."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, List

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from _tiny import (KINDS, PLACES, add_modules, build_backbone, build_runner,
                   fill, fusion_neck, model_cfg, save_trunk, vit)
from vim_mm.engine.loaded import note_loaded
from vim_mm.registry import MODELS
from vim_mm.zoo import head_state, save_module

HOOKS: Dict[str, dict] = dict(
    warm=dict(type='vim_mm.WarmHeadHook', epochs=3),
    score=dict(type='vim_mm.ScoreGatesHook'),
    hold_out=dict(type='vim_mm.HoldOutGatesHook', steps=2),
    head=dict(type='vim_mm.ModuleHeadHook', module='a'))


class Start(Hook):
    """Notes a model as its training begins."""

    priority = 'VERY_LOW'

    def before_train(self, runner: Runner) -> None:
        self.state = {
            key: value.clone()
            for key, value in runner.model.state_dict().items()
        }


def model(kind: str, folder: Path, place: str = 'trunk') -> dict:
    path = folder / 'trunk.pth'
    trunk = save_trunk(path)
    fused = dict(fusion=dict(type='EnsMoE', tasks=['t']))
    if not (folder / 'zoo').exists():
        backbone = build_backbone(trunk)
        add_modules(backbone, 'a', 'b', std=0.1)
        neck = fusion_neck(kind, ['a', 'b'])
        neck.update(fused if place == 'neck' else dict(modules=[]))
        head = build_runner(
            kind, model_cfg(kind, dict(trunk=trunk), fusion_neck(kind)),
            folder / 'mid').model
        fill(head.head if kind == 'cls' else head, 0.1)
        for name in 'ab':
            save_module(backbone, name, str(folder / 'zoo'),
                        head=head_state(head))
    backbone = dict(
        trunk=trunk, zoo=str(folder / 'zoo'), modules=['a', 'b'])
    neck = fusion_neck(kind)
    if place == 'trunk':
        backbone.update(fused)
    else:
        neck.update(fused, modules=['a', 'b'])
    return model_cfg(kind, backbone, neck)


def fused_checkpoint(kind: str, folder: Path, place: str) -> Dict[str, Tensor]:
    run = build_runner(kind, model(kind, folder, place), folder / 'first')
    for name, param in run.model.named_parameters():
        if 'trunk.' not in name and 'bank' not in name:
            param.data.normal_(0, 0.1)
    state = {key: value.clone()
             for key, value in run.model.state_dict().items()}
    torch.save(dict(state_dict=state, meta={}), folder / 'fused.pth')
    return state


def start(kind: str, folder: Path, place: str, hooks: List[dict],
          state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    torch.save(dict(state_dict=state, meta={}), folder / 'fused.pth')
    note = Start()
    run = build_runner(
        kind, model(kind, folder, place), folder / 'second', iters=1,
        custom_hooks=[*hooks, note], load_from=str(folder / 'fused.pth'))
    run.train()
    return note.state


def hook(name: str, folder: Path, **kwargs) -> dict:
    cfg = dict(HOOKS[name], **kwargs)
    return dict(cfg, zoo=str(folder / 'zoo')) if name == 'head' else cfg


def moved(before: Dict[str, Tensor], after: Dict[str, Tensor]) -> set:
    return {key for key in before if not torch.equal(before[key], after[key])}


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('name', HOOKS)
def test_all_that_was_loaded_stays(name: str, place: str,
                                   tmp_path: Path) -> None:
    if (name, place) == ('head', 'neck'):
        pytest.skip('the head of a module has no gates in its neck')
    kind = 'seg'
    state = fused_checkpoint(kind, tmp_path, place)
    cfg = hook(name, tmp_path)
    assert not moved(state, start(kind, tmp_path, place, [cfg], state))
    # a switch starts anew
    cfg['keep_loaded'] = False
    changed = moved(state, start(kind, tmp_path, place, [cfg], state))
    assert changed
    if name in ('score', 'hold_out'):
        assert all('fusion.' in key for key in changed)


@pytest.mark.parametrize('kind', KINDS)
def test_what_the_file_lacks_is_prepared(kind: str, tmp_path: Path) -> None:
    state = fused_checkpoint(kind, tmp_path, 'trunk')
    last = [key for key in state if 'backbone' not in key
            and key.endswith(('weight', 'bias'))][-2:]
    part = {key: value for key, value in state.items() if key not in last}
    hooks = [hook('score', tmp_path), hook('warm', tmp_path)]
    begun = start(kind, tmp_path, 'trunk', hooks, part)
    assert not moved(part, begun)
    assert moved({key: state[key] for key in last}, begun)
    # of another shape is not in the file either
    part.update({key: torch.zeros(3, 3, 3) for key in last})
    again = start(kind, tmp_path, 'trunk', hooks, part)
    assert not moved(begun, again)


def test_a_line_says_so(tmp_path: Path) -> None:
    state = fused_checkpoint('cls', tmp_path, 'trunk')
    run = build_runner(
        'cls', model('cls', tmp_path), tmp_path / 'second', iters=1,
        custom_hooks=[hook('warm', tmp_path)], log_level='INFO',
        load_from=str(tmp_path / 'fused.pth'))
    assert state
    run.train()
    log, = (tmp_path / 'second').glob('*/*.log')
    assert 'WarmHeadHook: 4 tensors stay as they are in ' in log.read_text()
    assert 'fused.pth' in log.read_text()
    assert 'keep_loaded=False' in log.read_text()


def test_the_init_cfg_of_the_whole_model(tmp_path: Path) -> None:
    state = fused_checkpoint('cls', tmp_path, 'trunk')
    cfg = model('cls', tmp_path)
    cfg['init_cfg'] = dict(
        type='Pretrained', checkpoint=str(tmp_path / 'fused.pth'))
    note = Start()
    run = build_runner(
        'cls', cfg, tmp_path / 'second', iters=1,
        custom_hooks=[hook('score', tmp_path), hook('warm', tmp_path), note])
    run.train()
    assert not moved(state, note.state)


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_the_prefix_of_a_wrapper(prefix: str, tmp_path: Path) -> None:
    state = fused_checkpoint('cls', tmp_path, 'trunk')
    named = {prefix + key: value for key, value in state.items()}
    hooks = [hook('warm', tmp_path)]
    assert not moved(state, start('cls', tmp_path, 'trunk', hooks, named))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('how', ['load_from', 'init_cfg'])
def test_a_plain_librarys_checkpoint(kind: str, how: str, tmp_path: Path,
                                     monkeypatch) -> None:
    """Its backbone is nowhere loaded, which a line says."""
    lines: List[str] = []
    monkeypatch.setattr('vim_mm.engine.loaded.print_log',
                        lambda text, **_: lines.append(text))
    head = dict(model_cfg(kind, {}), neck=fusion_neck(kind))
    plain = MODELS.build(dict(head, backbone=vit()))
    path = str(tmp_path / 'plain.pth')
    torch.save(dict(state_dict=plain.state_dict()), path)
    for weights in (None, dict(type='Pretrained', checkpoint=path)):
        cfg = dict(
            head,
            backbone=dict(
                type='vim_mm.ViMBackbone',
                trunk=vit(init_cfg=weights),
                new_module='n'))
        kwargs = dict(load_from=path)
        if how == 'init_cfg':
            kwargs = {}
            cfg.update(init_cfg=dict(type='Pretrained', checkpoint=path))
        start = Start()
        build_runner(
            kind,
            cfg,
            tmp_path / str(bool(weights)),
            iters=1,
            custom_hooks=[start],
            **kwargs).train()
        key = next(k for k in plain.state_dict() if k.startswith('neck.'))
        assert torch.equal(start.state[key], plain.state_dict()[key])
    line, = lines
    assert 'tensors of a plain backbone' in line
    assert '`model.backbone.trunk.init_cfg.checkpoint`' in line


@pytest.mark.parametrize('rename', [
    lambda key: f'net.{key}', lambda key: key.partition('.')[2]])
def test_a_file_that_gives_nothing_is_refused(rename: Callable,
                                              tmp_path: Path) -> None:
    cfg = model('cls', tmp_path)
    fits = build_runner('cls', cfg, tmp_path / 'a').model.state_dict()
    for name, state in (('fits', dict(fits)), ('none', {
            rename(key): value for key, value in fits.items()})):
        path = str(tmp_path / f'{name}.pth')
        torch.save(dict(state_dict=state), path)
        run = build_runner('cls', cfg, tmp_path / name, iters=1,
                           load_from=path)
        if name == 'fits':
            run.train()
            continue
        with pytest.raises(ValueError, match=(
                f"None of the {len(state)} tensors in '.*none.pth', such as "
                ".* nothing would be loaded")):
            run.train()
        assert not list((tmp_path / name).glob('*.pth'))


def test_parts_of_tensors_are_not_asked_for_the_whole() -> None:
    """FSDP would take the part that is asked first for the whole model."""

    class Part(nn.Linear):

        def state_dict(self, *args: Any, **kwargs: Any) -> dict:
            raise AssertionError('Non-root FSDP instance')

    strategy = SimpleNamespace(whole={'a.weight': torch.empty(2, 2)})

    class Run(SimpleNamespace):
        __hash__ = object.__hash__

    run = Run(model=nn.ModuleDict(dict(a=Part(2, 2))), strategy=strategy)
    note_loaded(run, {'a.weight': torch.ones(2, 2)}, 'x.pth')
    with pytest.raises(ValueError, match="None of the 1 tensors in 'y.pth'"):
        note_loaded(run, {'b.weight': torch.ones(2, 2)}, 'y.pth')
