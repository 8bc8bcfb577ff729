# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Learned gates stay if they help more than their start and the trunk."""

from pathlib import Path
from typing import Optional

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.runner import Runner

from _multitask import TaskPictures
from _tiny import (Pictures, add_modules, build_backbone, build_runner,
                   fusion_neck, model_cfg, save_trunk)
from vim_mm.engine.hooks import BetterGatesHook, WarmHeadHook
from vim_mm.engine.module_trials import ModuleTrials
from vim_mm.evaluation.paired import HeldOut
from vim_mm.zoo import save_module

NAMES = ['a', 'b']


def runner(folder: Path, kind: str = 'cls', in_neck: bool = False,
           hooks: tuple = (), warm: bool = True, **backbone) -> Runner:
    folder.mkdir(exist_ok=True)
    trunk = save_trunk(folder / 'trunk.pth')
    midstream = build_backbone(trunk)
    add_modules(midstream, *NAMES)
    for name in NAMES:
        save_module(midstream, name, str(folder / 'zoo'))
    cfg = dict(trunk=trunk, zoo=str(folder / 'zoo'), modules=NAMES)
    neck = fusion_neck(kind, NAMES if in_neck else [])
    if not in_neck:
        cfg.update(fusion=dict(type='vim_mm.EnsMoE'))
    cfg.update(backbone)
    hooks = [dict(type='vim_mm.BetterGatesHook', num_extra_tokens=0), *hooks]
    if warm:
        hooks.append(dict(type='vim_mm.WarmHeadHook', epochs=1))
    return build_runner(kind, model_cfg(kind, cfg, neck), folder, iters=3,
                        lr=.01, custom_hooks=hooks)


def prefer(monkeypatch: pytest.MonkeyPatch, best: str) -> dict:
    """Let what is learned, the start or the trunk score best."""
    seen = {}

    def score(self, setting) -> HeldOut:
        name = setting if isinstance(setting, str) else 'trunk'
        seen[name] = len(list(self.features.batches(None)))
        order = dict(learned=1., start=1., trunk=0.)
        order[best] += 1
        if best == 'trunk':
            order[best] += 1
        return HeldOut(order[name], torch.zeros(8))

    for name in ('_ridge', '_own_head'):
        monkeypatch.setattr(ModuleTrials, name, score)
    return seen


def gates(run: Runner, model: Optional[object] = None) -> torch.Tensor:
    model = model or run.model
    fusion = model.neck.fusion or model.backbone.fusion
    return fusion.gates('default').detach()


@pytest.mark.parametrize('best', ['learned', 'start', 'trunk'])
@pytest.mark.parametrize(('kind', 'in_neck'), [
    ('cls', False), ('seg', True), ('det', False)
])
def test_the_better_ones_are_kept_and_saved(
        tmp_path: Path, kind: str, in_neck: bool, best: str,
        monkeypatch: pytest.MonkeyPatch) -> None:
    seen = prefer(monkeypatch, best)
    run = runner(tmp_path, kind, in_neck)
    run.train()
    assert set(seen) == {'learned', 'start', 'trunk'}
    found = gates(run)
    start = torch.full_like(found, .5)
    if best == 'learned':
        assert not torch.equal(found, start) and found.sum() > 0
    else:
        assert torch.equal(found, start * (best == 'start'))
    # the checkpoint holds the same
    other = runner(tmp_path / 'again', kind, in_neck)
    other.load_checkpoint(str(tmp_path / 'iter_3.pth'))
    assert torch.equal(gates(other), found)


def test_the_head_is_warmed_again(tmp_path: Path, monkeypatch) -> None:
    prefer(monkeypatch, 'start')
    run = runner(tmp_path)
    warmed = []
    hook, = (h for h in run.hooks if type(h).__name__ == 'WarmHeadHook')
    warm = hook.warm

    def spy(*args) -> None:
        warmed.append(gates(run).clone())
        warm(*args)

    hook.warm = spy
    run.train()
    assert len(warmed) == 2 and torch.equal(*warmed)


@pytest.mark.parametrize('best', ['learned', 'start', 'trunk', None])
def test_heads_that_are_compared_are_warmed_twice(
        best: Optional[str], tmp_path: Path, monkeypatch) -> None:
    """Whichever gates are kept, and where no hook looks at them."""
    if best is not None:
        prefer(monkeypatch, best)
    run = runner(tmp_path, 'seg', in_neck=True)
    run._hooks = [h for h in run.hooks
                  if best or not isinstance(h, BetterGatesHook)]
    hook, = (h for h in run.hooks if isinstance(h, WarmHeadHook))
    hook.again, warmed, train = True, [], hook._train_head

    def spy(*args) -> None:
        before = gates(run).clone()
        train(*args)
        warmed.append(gates(run).equal(before))

    hook._train_head = spy
    run.train()
    assert len(warmed) == 2 and warmed[1]


@pytest.mark.parametrize('fusion', [dict(type='vim_mm.EnsMoE', learn=False)])
def test_what_did_not_learn_is_not_looked_at(tmp_path: Path, fusion: dict,
                                             monkeypatch) -> None:
    seen = prefer(monkeypatch, 'trunk')
    run = runner(tmp_path, fusion=fusion)
    run.train()
    assert not seen


def test_modules_that_learn_stay(tmp_path: Path, monkeypatch) -> None:
    prefer(monkeypatch, 'trunk')
    run = runner(tmp_path, tune_modules=True)
    run.train()
    assert gates(run).sum() > 0


def test_images_of_one_s_own(tmp_path: Path, monkeypatch) -> None:
    sizes = []
    score = ModuleTrials._ridge

    def spy(self, setting) -> HeldOut:
        sizes.append(self.features.num_pictures)
        return score(self, setting)

    monkeypatch.setattr(ModuleTrials, '_ridge', spy)
    run = runner(tmp_path)
    hook, = (h for h in run.hooks if isinstance(h, BetterGatesHook))
    hook.dataloader = dict(
        dataset=Pictures('cls', 12), batch_size=6, num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='pseudo_collate'))
    run.train()
    assert sizes == [12] * 3


def test_averaged_gates_follow(tmp_path: Path, monkeypatch) -> None:
    prefer(monkeypatch, 'trunk')
    run = runner(tmp_path, hooks=[dict(type='EMAHook')])
    run.train()
    averaged, = (h.ema_model.module for h in run.hooks
                 if isinstance(h, EMAHook))
    for model in (averaged, run.model):
        assert (gates(run, model) == 0).all()


def test_without_gates_that_learn_it_says_so(tmp_path: Path) -> None:
    run = runner(tmp_path, fusion=dict(type='vim_mm.FixedFusion'))
    with pytest.raises(ValueError, match='BetterGatesHook looks at'):
        run.train()


@pytest.mark.parametrize(('given', 'words'), [
    ('val_dataloader', "dataloader` is 'val_dataloader'; give a config"),
    (dict(batch_siz=2), 'is no loader: .*batch_siz'),
    (dict(dataset=dict(type='mmpretrain.CustomDataset', data_root='/none')),
     "'/none' does not exist"),
])
def test_other_images_are_looked_at_before_training(
        given: object, words: str, tmp_path: Path) -> None:
    run = runner(tmp_path)
    loader = dict(batch_size=2, num_workers=0, sampler=dict(
        type='DefaultSampler', shuffle=False),
        dataset=dict(type=TaskPictures, kind='cls'))
    hook = next(h for h in run.hooks if isinstance(h, BetterGatesHook))
    hook.dataloader = given if isinstance(given, str) else dict(
        loader, **given)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        run.train()
    assert run.iter == 0
