# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Gates start where modules help on held-out images, or do not start."""

from pathlib import Path
from typing import List, Optional, Sequence

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.runner import Runner

from _tiny import (KINDS, Pictures, add_modules, build_backbone, build_runner,
                   fill, first_of, fusion_neck, losses, model_cfg, same,
                   save_trunk, snapshot)
from vim_mm.engine import module_trials
from vim_mm.engine.hooks import HoldOutGatesHook, ScoreGatesHook
from vim_mm.engine.module_trials import ModuleTrials
from vim_mm.evaluation.paired import HeldOut
from vim_mm.features.score_cache import ScoreCache
from vim_mm.models.fusion import FusionHolder
from vim_mm.zoo import save_module

HOOK = dict(num_extra_tokens=0)
#: One module changes nearly nothing, one drowns the picture.
NAMES = ['drowns', 'keeps']


def make_zoo(folder: Path) -> dict:
    """A zoo, and what a backbone is given to load it."""
    folder.mkdir(exist_ok=True)
    trunk = save_trunk(folder / 'trunk.pth')
    midstream = build_backbone(trunk)
    add_modules(midstream, *NAMES)
    fill(midstream.bank.members['keeps'], 1e-3)
    # a constant so large that the picture is lost in its rounding
    for adapter in midstream.bank.members['drowns'].values():
        torch.nn.init.zeros_(adapter.up.weight)
        torch.nn.init.constant_(adapter.up.bias, 1e9)
    for name in NAMES:
        save_module(midstream, name, str(folder / 'zoo'))
    return dict(trunk=trunk, zoo=str(folder / 'zoo'))


def runner(folder: Path,
           kind: str = 'cls',
           modules: Sequence[str] = NAMES,
           neck: Optional[dict] = None,
           hooks: tuple = (dict(type='vim_mm.ScoreGatesHook', **HOOK), ),
           iters: int = 1,
           **backbone) -> Runner:
    cfg = make_zoo(folder)
    cfg.update(modules=list(modules))
    if neck is None:
        cfg.update(fusion=dict(type='vim_mm.EnsMoE', tasks=('x', 't')),
                   task='t')
    model = model_cfg(kind, dict(cfg, **backbone), neck or fusion_neck(kind))
    return build_runner(kind, model, folder, iters=iters,
                        custom_hooks=list(hooks))


def part(run: Runner) -> FusionHolder:
    neck = run.model.neck
    return neck if neck.fusion is not None else run.model.backbone


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('place', first_of(['trunk', 'neck']))
def test_where_none_helps_no_module_runs(tmp_path: Path, kind: str,
                                         place: str) -> None:
    names = NAMES
    neck = fusion_neck(kind, names) if place == 'neck' else None
    fused = dict(fusion=None, task=None) if neck else {}
    run = runner(tmp_path, kind, names, neck, **fused)
    images = Pictures(kind).batch()
    run.train()
    model, fusing = run.model.eval(), part(run)
    assert fusing.fusion.is_off(fusing.task)
    assert (fusing.fusion.gates(fusing.task) == 0).all()
    scores = run.message_hub.get_info('module_scores')
    assert list(scores) == ['frozen trunk', *names, 'uniform weights']
    assert scores['frozen trunk'] > scores['drowns'] + 0.1
    assert run.message_hub.get_info('module_weights') == dict.fromkeys(
        names, 0.)
    with torch.no_grad():
        inputs = model.data_preprocessor(images)['inputs']
        with model.backbone.only():
            bare = model.backbone(inputs)
        fused = model.backbone(inputs)
        if neck:
            fused = fusing.fuse(fused)
    assert all(map(torch.equal, fused, bare))


FUSIONS = [
    dict(type='EnsMoE'),
    dict(type='EnsMoE', zero_module=True, top_k=1),
    dict(type='LinearMoE'),
    dict(type='RoutedMoE'),
    dict(type='ParameterMerge')
]


@pytest.mark.parametrize('fusion', FUSIONS, ids=str)
def test_the_run_is_the_frozen_trunk_s_bit_for_bit(tmp_path: Path,
                                                   fusion: dict) -> None:
    """Same head, same images, and modules that do not help."""
    hooks = [
        dict(type='vim_mm.ScoreGatesHook', **HOOK),
        dict(type='vim_mm.WarmHeadHook', epochs=2)
    ]
    run = runner(tmp_path, hooks=hooks, iters=4, task=None,
                 fusion=dict(fusion, type=f'vim_mm.{fusion["type"]}'))
    bare = runner(tmp_path / 'bare', modules=(), hooks=hooks[1:], iters=4,
                  task=None, fusion=None)
    for each in (run, bare):
        torch.manual_seed(3)
        fill(each.model.neck, .1)
        fill(each.model.head, .1)
        each.model._is_init = True  # as it is
        each.train()
    assert part(run).fusion.is_off('default')
    for name in ('neck', 'head'):
        assert same(snapshot(getattr(run.model, name)),
                    snapshot(getattr(bare.model, name)))
    assert torch.equal(losses(run), losses(bare))


def prefer(monkeypatch: pytest.MonkeyPatch, *best: float,
           noise: float = 0.) -> List[tuple]:
    """Let one setting score best; what was scored is returned."""
    seen = []

    def score(self, setting: tuple) -> HeldOut:
        seen.append(setting)
        weights = best if isinstance(setting, str) else setting
        value = 1 - sum(abs(w - b) for w, b in zip(weights, best))
        # no two settings err alike
        parts = torch.zeros(40)
        parts[len(seen)] = noise
        return HeldOut(value, parts)

    for name in ('_ridge', '_own_head'):
        monkeypatch.setattr(ModuleTrials, name, score)
    return seen


@pytest.mark.parametrize(('kind', 'place', 'best'), [
    ('cls', 'trunk', (0., .5)), ('cls', 'neck', (1., 0.)),
    ('seg', 'trunk', (.25, 1.)), ('seg', 'neck', (0., .5)),
    ('det', 'trunk', (1., 0.)), ('det', 'neck', (.25, 1.))
])
def test_gates_start_where_it_scores_best(tmp_path: Path, kind: str,
                                          place: str, best: tuple,
                                          monkeypatch) -> None:
    names = ['drowns', 'keeps']
    prefer(monkeypatch, *best)
    neck = fusion_neck(kind, names) if place == 'neck' else None
    fused = dict(fusion=None, task=None) if neck else {}
    run = runner(tmp_path, kind, names, neck, **fused)
    ScoreGatesHook(**HOOK).before_train(run)
    fusion, task = part(run).fusion, part(run).task
    gates = fusion.gates(task)
    torch.testing.assert_close(
        gates, torch.tensor([best]).expand_as(gates), rtol=0, atol=1e-3)
    assert run.message_hub.get_info('module_weights') == dict(
        zip(names, best))
    if not neck:
        assert (fusion.logits['x'] == 0).all()


def test_what_is_not_more_than_noise_does_not_enter(
        tmp_path: Path, monkeypatch) -> None:
    prefer(monkeypatch, 0., .5, noise=1.)
    run = runner(tmp_path)
    ScoreGatesHook(**HOOK).before_train(run)
    assert part(run).fusion.is_off('t')


def test_modules_that_learn_run_all_the_same(tmp_path: Path,
                                             monkeypatch) -> None:
    prefer(monkeypatch, 0., 0.)
    run = runner(tmp_path, tune_modules=True)
    ScoreGatesHook(**HOOK).before_train(run)
    gates = part(run).fusion.gates('t')
    assert torch.equal(gates, torch.full((6, 2), .5))


def test_a_neck_s_only_stream_stays(tmp_path: Path, monkeypatch) -> None:
    prefer(monkeypatch, 0.)
    run = runner(tmp_path, 'seg', ['keeps'], fusion_neck('seg', ['keeps']),
                 fusion=None, task=None)
    ScoreGatesHook(**HOOK).before_train(run)
    assert torch.equal(run.model.neck.fusion.gates('default'),
                       torch.ones(3, 1))


def test_without_logits_it_says_so(tmp_path: Path) -> None:
    run = runner(tmp_path, fusion=dict(type='vim_mm.FixedFusion'), task=None)
    with pytest.raises(ValueError, match='set `model.backbone.fusion`'):
        ScoreGatesHook().before_train(run)


def test_a_resumed_run_keeps_its_gates(tmp_path: Path) -> None:
    run = runner(tmp_path)
    run.train_loop._iter = 3
    ScoreGatesHook().before_train(run)
    assert (run.model.backbone.fusion.logits['t'] == 0).all()
    assert not run.model.backbone.fusion.is_off('t')


def test_a_process_that_cannot_score_leaves_it_to_the_others(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runner(tmp_path)
    trials = ScoreGatesHook(**HOOK).trials(run, run.model.eval(),
                                           run.train_dataloader)
    bare, other = (0., 0.), (1., 0.)
    expected = trials.ridge(bare), trials.ridge(other)
    gain = trials.compare(other, bare)

    def summed(total: torch.Tensor) -> None:
        total.add_(torch.tensor(others.pop(0)).to(total))

    monkeypatch.setattr(module_trials, 'all_reduce', summed)
    # another process that scores alike
    others = [[expected[0], 1.], [*gain[:1], gain.noise**2, 1.]]
    assert trials.ridge(bare) == pytest.approx(expected[0])
    both = trials.compare(other, bare)
    assert both.value == pytest.approx(gain.value)
    assert both.noise == pytest.approx(gain.noise / 2**.5)
    # this one cannot
    trials._found, trials.cache = {}, ScoreCache(None, 'new')
    monkeypatch.setattr(
        trials, '_ridge', lambda *_:
        (_ for _ in ()).throw(ValueError('alone')))
    others = [[expected[1], 1.], [.5, .01, 1.], [0., 0.]]
    assert trials.ridge(other) == pytest.approx(expected[1])
    assert trials.compare(other, other) == pytest.approx((.5, .1))
    with pytest.raises(ValueError, match='alone'):  # nobody can
        trials.ridge(bare)


def test_scoring_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    run = runner(tmp_path, 'det')
    run.model.train()
    before, drawn = snapshot(run.model), torch.get_rng_state()
    ScoreGatesHook(**HOOK).before_train(run)
    assert torch.equal(torch.get_rng_state(), drawn)
    after = snapshot(run.model)
    for state in (before, after):
        for key in [key for key in state if 'fusion' in key]:
            state.pop(key)
    assert run.model.training and same(before, after)


def test_an_averaged_model_starts_from_the_same_gates(
        tmp_path: Path, monkeypatch) -> None:
    prefer(monkeypatch, 0., .5)
    run = runner(tmp_path)
    run.register_hook(dict(type='EMAHook'), priority='NORMAL')
    run.call_hook('before_run')
    ScoreGatesHook(**HOOK).before_train(run)
    averaged, = (h.ema_model.module for h in run.hooks
                 if isinstance(h, EMAHook))
    gates = run.model.backbone.fusion.gates('t')
    assert gates.sum() > 0
    assert torch.equal(averaged.backbone.fusion.gates('t'), gates)


def test_several_labels_an_image(tmp_path: Path) -> None:
    run = runner(tmp_path, task=None, fusion=dict(type='vim_mm.LinearMoE'))
    for index, sample in enumerate(run.train_dataloader.dataset.samples):
        labels = [[0], [1], [0, 1], []][index % 4]
        sample['data_samples'].set_gt_label(torch.tensor(labels).long())
    for kind in (ScoreGatesHook, HoldOutGatesHook):
        part(run).fusion.set_weights('default', torch.tensor([.5, .5]))
        kind(**HOOK).before_train(run)
        assert part(run).fusion.gates('default').isfinite().all()
    scores = run.message_hub.get_info('module_scores')
    assert all(0 <= score <= 1 for score in scores.values())
