# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Settings of students that mean nothing are refused, or named in a line."""

from typing import Callable

import pytest
from _tdmr import build, config, foundation
from mmengine.config import ConfigDict

from vim_mm.engine.hooks import ModuleToZooHook, ProxyHook
from vim_mm.models.distillers import outside
from vim_mm.registry import MODELS

NAN = float('nan')


def of_foundation(**changes: object) -> Callable:
    return lambda cfg: cfg.foundations.vit.model.data_preprocessor.update(
        changes)


@pytest.mark.parametrize(('change', 'words'), [
    *[(lambda cfg, n=n: cfg.proxy.update(channels=n),
       '`proxy.channels` is .*; give a whole') for n in (0, -1, '24', 2.5)],
    (lambda cfg: cfg.proxy.update(hidden=0), '`proxy.hidden` is 0'),
    (lambda cfg: cfg.update(probe_size=0), '`model.probe_size` is 0'),
    (lambda cfg: cfg.update(probe_size='56'), "`model.probe_size` is '56'"),
    (of_foundation(std=[0.] * 3), 'std` is .*0.0.*; give numbers above 0'),
    (of_foundation(std=[NAN] * 3), 'std` is .*nan.*; give numbers above 0'),
    (lambda cfg: cfg.student.pop('type'), 'has no `type`, only'),
])
def test_of_tdmr(change: Callable, words: str) -> None:
    cfg = ConfigDict(config())
    change(cfg)
    with pytest.raises(ValueError, match=words):
        MODELS.build(cfg)


@pytest.mark.parametrize('settings', [
    dict(epochs=-3), dict(epochs='3'), dict(epochs=NAN), dict(batch_size=0),
    dict(batch_size='a'), dict(domain=-1), dict(domain=NAN)])
def test_of_the_hook(settings: dict) -> None:
    with pytest.raises(ValueError, match='`ProxyHook.* is .*; give a '):
        ProxyHook(**settings)
    ProxyHook(epochs=0)


@pytest.mark.parametrize('settings', [
    dict(licence=''), dict(licence=' '), dict(licence=None),
    dict(dataset=''), dict(dataset=3)])
def test_of_cards(settings: dict) -> None:
    good = dict(zoo='zoo', dataset='d', task='cls', licence='CC0-1.0')
    ModuleToZooHook(**good)
    with pytest.raises(ValueError, match='`ModuleToZooHook.* is .*; give tex'):
        ModuleToZooHook(**dict(good, **settings))


@pytest.mark.parametrize('key', [None, 'checkpoint', 'init_cfg'])
def test_a_network_without_weights_is_named(
        key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(outside, 'print_log',
                        lambda said, **kwargs: told.append(said))
    monkeypatch.setattr(outside, 'load_whole', lambda *args: {})
    cfg = foundation('vit')
    if key == 'checkpoint':
        cfg[key] = 'weights.pth'
    elif key == 'init_cfg':
        cfg['model'][key] = dict(type='Constant', layer='Conv2d', val=1.,
                                 checkpoint='weights.pth')
        monkeypatch.setattr('mmpretrain.models.ImageClassifier.init_weights',
                            lambda model: None)
    outside.build_outside(cfg, 'teacher')
    assert [said.split(' is ')[0] for said in told] == (
        [] if key else ['`teacher`'])


@pytest.mark.parametrize('model', ['teacher.py', 3, None])
def test_a_network_that_is_no_config(model: object) -> None:
    with pytest.raises(ValueError, match='`teacher.model` is .*; give a conf'):
        outside.build_outside(dict(model=model), 'teacher')


def test_it_can_be_built() -> None:
    assert build().proxy.channels == 24
