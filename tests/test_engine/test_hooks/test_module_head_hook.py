# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A downstream run starts from the head of a module."""

from pathlib import Path

import pytest
import torch

from _tiny import (DIMS, KINDS, build_runner, fill, fusion_neck, model_cfg,
                   save_trunk)
from vim_mm.engine.hooks import ModuleHeadHook
from vim_mm.zoo import ZooError, head_state, save_module


def model(kind: str, folder: Path, streams: tuple = (), **backbone) -> dict:
    trunk = save_trunk(folder / 'trunk.pth')
    return model_cfg(kind, dict(dict(trunk=trunk), **backbone),
                     fusion_neck(kind, list(streams)))


def midstream(kind: str, folder: Path) -> dict:
    """Save a module 'm' and its head; return the head."""
    run = build_runner(kind, model(kind, folder, new_module='m'), folder)
    for name, part in run.model.named_children():
        if name != 'backbone':
            fill(part, 0.1, seed=1)
    head = head_state(run.model)
    save_module(run.model.backbone, 'm', str(folder / 'zoo'), head=head)
    return head


def loaded(folder: Path) -> dict:
    return dict(zoo=str(folder / 'zoo'), modules=['m'])


@pytest.mark.parametrize('kind', KINDS)
def test_neck_and_head_start_from_the_module(tmp_path: Path,
                                             kind: str) -> None:
    head = midstream(kind, tmp_path)
    hooks = [
        dict(type='vim_mm.WarmHeadHook', epochs=0),
        dict(
            type='vim_mm.ModuleHeadHook',
            module='m',
            zoo=str(tmp_path / 'zoo'))
    ]
    run = build_runner(
        kind, model(kind, tmp_path, **loaded(tmp_path)), tmp_path,
        custom_hooks=hooks)
    order = [type(h).__name__ for h in run.hooks]
    assert order.index('ModuleHeadHook') < order.index('WarmHeadHook')
    run.call_hook('before_train')
    mine = head_state(run.model)
    assert mine.keys() == head.keys() and len(head) > 2
    assert all(torch.equal(mine[key], head[key]) for key in head)
    assert any(value.abs().sum() > 0 for value in head.values())


def test_weights_of_streams_stay(tmp_path: Path) -> None:
    """The module's model had one stream, this one weighs several."""
    midstream('seg', tmp_path)
    cfg = model('seg', tmp_path, streams=('m', 'n'), new_module='n',
                **loaded(tmp_path))
    run = build_runner('seg', cfg, tmp_path)
    logits = torch.randn(3, 2)
    run.model.neck.fusion.set_logits('default', logits)
    ModuleHeadHook('m', str(tmp_path / 'zoo')).before_train(run)
    assert torch.equal(run.model.neck.fusion.logits['default'], logits)


def test_what_differs_is_said(tmp_path: Path) -> None:
    midstream('cls', tmp_path)
    hook = ModuleHeadHook('m', str(tmp_path / 'zoo'))
    cfg = model('cls', tmp_path, **loaded(tmp_path))
    wide = dict(cfg, head=dict(cfg['head'], num_classes=5))
    run = build_runner('cls', wide, tmp_path)
    before = head_state(run.model)
    with pytest.raises(ZooError, match=r"'head.fc.bias' is \(2,\) there and "
                       rf'\(5,\).*\(2, {DIMS}\) there and \(5, {DIMS}\)'):
        hook.before_train(run)
    after = head_state(run.model)
    assert all(torch.equal(before[key], after[key]) for key in before)
    other = build_runner('seg', model('seg', tmp_path, **loaded(tmp_path)),
                         tmp_path)
    with pytest.raises(ZooError, match="'decode_head.*is only in the model"):
        hook.before_train(other)


def test_a_module_without_head_is_refused(tmp_path: Path) -> None:
    run = build_runner('cls', model('cls', tmp_path, new_module='m'), tmp_path)
    save_module(run.model.backbone, 'm', str(tmp_path / 'zoo'))
    with pytest.raises(ZooError, match='without a task head'):
        ModuleHeadHook('m', str(tmp_path / 'zoo')).before_train(run)


def test_a_resumed_run_keeps_its_head(tmp_path: Path) -> None:
    midstream('cls', tmp_path)
    run = build_runner('cls', model('cls', tmp_path, **loaded(tmp_path)),
                       tmp_path)
    before = head_state(run.model)
    run.train_loop._iter = 3
    ModuleHeadHook('m', str(tmp_path / 'zoo')).before_train(run)
    after = head_state(run.model)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_list_of_necks_and_streams_midstream(tmp_path: Path) -> None:
    """Weights of streams are no part of a module's head."""
    midstream('cls', tmp_path)
    cfg = model('cls', tmp_path, streams=('m', 'n'), new_module='n',
                **loaded(tmp_path))
    run = build_runner('cls', cfg, tmp_path)
    head = head_state(run.model)
    assert head and not [key for key in head if '.fusion.' in key]
    save_module(run.model.backbone, 'n', str(tmp_path / 'zoo'), head=head)
    ModuleHeadHook('n', str(tmp_path / 'zoo')).before_train(run)

    listed = model('cls', tmp_path, **loaded(tmp_path))
    listed['neck'] = [listed['neck']]
    first = build_runner('cls', listed, tmp_path).model
    save_module(first.backbone, 'm', str(tmp_path / 'zoo'),
                head=head_state(first), overwrite=True)
    cfg['neck'] = [cfg['neck']]
    run = build_runner('cls', cfg, tmp_path)
    ModuleHeadHook('m', str(tmp_path / 'zoo')).before_train(run)
    assert 'neck.0.fusion.logits.default' in run.model.state_dict()
