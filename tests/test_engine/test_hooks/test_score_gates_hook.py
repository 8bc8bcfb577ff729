# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Gates start where the few-shot scores of the modules say."""

from pathlib import Path
from typing import Optional

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.runner import Runner

from _tiny import (add_modules, build_backbone, build_runner, fill,
                   fusion_neck, model_cfg, same, save_trunk, snapshot)
from vim_mm.engine.hooks import ScoreGatesHook, score_gates_hook
from vim_mm.zoo import save_module

HOOK = dict(temperature=0.5, num_extra_tokens=0)


def runner(folder: Path, kind: str = 'cls', neck: Optional[dict] = None,
           **backbone) -> Runner:
    folder.mkdir(exist_ok=True)
    trunk = save_trunk(folder / 'trunk.pth')
    midstream = build_backbone(trunk)
    add_modules(midstream, 'keeps', 'drowns')
    # a constant so large that the picture is lost in its rounding
    fill(midstream.bank.members['keeps'], 1e-3)
    for adapter in midstream.bank.members['drowns'].values():
        torch.nn.init.zeros_(adapter.up.weight)
        torch.nn.init.constant_(adapter.up.bias, 1e9)
    for name in midstream.bank.names:
        save_module(midstream, name, str(folder / 'zoo'))
    backbone = dict(
        dict(
            trunk=trunk,
            zoo=str(folder / 'zoo'),
            modules=['drowns', 'keeps'],
            fusion=dict(type='vim_mm.EnsMoE', tasks=('x', 't')),
            task='t'), **backbone)
    model = model_cfg(kind, backbone, neck or fusion_neck(kind))
    hook = dict(type='vim_mm.ScoreGatesHook', **HOOK)
    return build_runner(kind, model, folder, iters=1, custom_hooks=[hook])


@pytest.mark.parametrize('kind', ['cls', 'seg', 'det'])
def test_the_better_module_starts_heavier(tmp_path: Path, kind: str) -> None:
    run = runner(tmp_path, kind)
    ScoreGatesHook(**HOOK).before_train(run)
    scores = run.message_hub.get_info('module_scores')
    assert list(scores) == ['drowns', 'keeps']
    assert scores['keeps'] > scores['drowns'] + 0.1
    fusion = run.model.backbone.fusion
    expected = torch.tensor([list(scores.values())] * 6) / 0.5
    torch.testing.assert_close(fusion.logits['t'].data, expected)
    assert (fusion.logits['x'] == 0).all()


def test_streams_weighed_in_a_neck(tmp_path: Path) -> None:
    names = ['drowns', 'keeps']
    run = runner(tmp_path, 'seg', neck=fusion_neck('seg', names), fusion=None,
                 task=None)
    run.train()
    scores = run.message_hub.get_info('module_scores')
    assert list(scores) == names
    other = runner(tmp_path / 'trunk', 'seg', modules=names)
    ScoreGatesHook(**HOOK).before_train(other)
    assert scores == other.message_hub.get_info('module_scores')
    logits = run.model.neck.fusion.logits['default']
    assert logits.shape == (3, 2) and (logits[:, 1] > logits[:, 0]).all()


def test_it_comes_before_the_first_step(tmp_path: Path) -> None:
    run = runner(tmp_path, modules=['keeps'])
    run.train()
    assert list(run.message_hub.get_info('module_scores')) == ['keeps']
    # one module: its logit has no gradient and stays where it was put
    assert (run.model.backbone.fusion.logits['t'] > 1).all()


def test_linear_weights_start_by_rank(tmp_path: Path) -> None:
    run = runner(tmp_path, fusion=dict(type='vim_mm.LinearMoE'), task=None)
    ScoreGatesHook(**HOOK).before_train(run)
    weights = run.model.backbone.fusion.logits['default']
    assert weights.tolist() == [[0.25, 1.]] * 6


def test_without_logits_it_says_so(tmp_path: Path) -> None:
    run = runner(tmp_path, fusion=dict(type='vim_mm.FixedFusion'), task=None)
    with pytest.raises(ValueError, match='set `model.backbone.fusion`'):
        ScoreGatesHook().before_train(run)


def test_a_resumed_run_keeps_its_gates(tmp_path: Path) -> None:
    run = runner(tmp_path)
    run.train_loop._iter = 3
    ScoreGatesHook().before_train(run)
    assert (run.model.backbone.fusion.logits['t'] == 0).all()


def test_a_large_set_is_scored_on_its_first_batches(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runner(tmp_path)
    rows = []

    def scores(found: dict, deals: int) -> dict:
        rows.extend(len(x) for x, *_ in found.values())
        return dict.fromkeys(found, 0.)

    monkeypatch.setattr(score_gates_hook, 'held_out_scores', scores)
    ScoreGatesHook(max_pictures=3).scores(run)
    ScoreGatesHook().scores(run)
    assert rows == [4] * 3 + [8] * 3  # two modules and the bare trunk each


def test_a_process_that_cannot_score_leaves_it_to_the_others(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runner(tmp_path)
    expected = ScoreGatesHook(**HOOK).scores(run)

    def without(other: list) -> dict:
        """What this process averages when it cannot score, beside another."""
        hook = ScoreGatesHook(**HOOK)
        hook.scores = lambda run: (_ for _ in ()).throw(ValueError('alone'))
        monkeypatch.setattr(
            score_gates_hook, 'all_reduce',
            lambda total: total.add_(torch.tensor(other)))
        return hook._averaged(run)

    assert without([*expected.values(), 1.]) == pytest.approx(expected)
    with pytest.raises(ValueError, match='alone'):
        without([0., 0., 0.])


def test_tokens_are_the_trunk_s_own(tmp_path: Path) -> None:
    run = runner(tmp_path)
    trunk = run.model.backbone.trunk
    found = ScoreGatesHook().scores(run)
    assert found == ScoreGatesHook(
        num_extra_tokens=trunk.num_extra_tokens).scores(run)


def test_scoring_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    run = runner(tmp_path)
    run.model.train()
    before = snapshot(run.model)
    ScoreGatesHook(**HOOK).scores(run)
    assert run.model.training and same(before, snapshot(run.model))


def test_a_zero_module_starts_where_the_bare_trunk_scores(
        tmp_path: Path) -> None:
    fusion = dict(type='vim_mm.EnsMoE', zero_module=True)
    run = runner(tmp_path, fusion=fusion, task=None)
    ScoreGatesHook(**HOOK).before_train(run)
    scores = run.message_hub.get_info('module_scores')
    assert list(scores) == ['drowns', 'keeps', 'zero module']
    assert scores['zero module'] > scores['drowns']
    logits = run.model.backbone.fusion.logits['default']
    expected = torch.tensor([list(scores.values())] * 6) / 0.5
    torch.testing.assert_close(logits.data, expected)


def test_an_averaged_model_starts_from_the_same_gates(tmp_path: Path) -> None:
    run = runner(tmp_path)
    run.register_hook(dict(type='EMAHook'), priority='NORMAL')
    run.call_hook('before_run')
    ScoreGatesHook(**HOOK).before_train(run)
    averaged, = (h.ema_model.module for h in run.hooks
                 if isinstance(h, EMAHook))
    fusion = run.model.backbone.fusion
    assert fusion.logits['t'].abs().sum() > 0
    assert torch.equal(averaged.backbone.fusion.logits['t'],
                       fusion.logits['t'])
