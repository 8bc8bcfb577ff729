# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Gates learn on held-out halves, before the head and beside no other."""

from pathlib import Path

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.runner import Runner

from _tiny import (KINDS, Pictures, add_modules, build_backbone, build_runner,
                   fill, fusion_neck, model_cfg, same, save_trunk, snapshot)
from vim_mm.engine.hooks import HoldOutGatesHook, hold_out_gates_hook
from vim_mm.engine.module_trials import ModuleTrials
from vim_mm.evaluation.paired import HeldOut
from vim_mm.evaluation.ridge import held_out_loss
from vim_mm.evaluation.unlike_halves import unlike_halves
from vim_mm.features.cache import CachedBatch, preprocess
from vim_mm.features.rows import rows_of
from vim_mm.zoo import save_module

HOOK = dict(steps=6, batches=2, num_extra_tokens=0, keep_better=False)


def runner(folder: Path, kind: str = 'cls', streams: bool = False,
           hooks: tuple = (), **backbone) -> Runner:
    """A zoo in which 'keeps' changes little and 'drowns' drowns pictures."""
    trunk = save_trunk(folder / 'trunk.pth')
    midstream = build_backbone(trunk)
    add_modules(midstream, 'keeps', 'drowns')
    fill(midstream.bank.members['keeps'], 1e-3)
    fill(midstream.bank.members['drowns'], 3.)
    names = ['drowns', 'keeps']
    for name in names:
        save_module(midstream, name, str(folder / 'zoo'), overwrite=True)
    cfg = dict(trunk=trunk, zoo=str(folder / 'zoo'), modules=names)
    if not streams:
        cfg.update(fusion=dict(type='vim_mm.EnsMoE'))
    neck = fusion_neck(kind, names if streams else [])
    model = model_cfg(kind, dict(cfg, **backbone), neck)
    return build_runner(kind, model, folder, iters=1, custom_hooks=list(hooks))


def held_out(run: Runner, kind: str) -> float:
    """The loss on all pictures, averaged over all deals."""
    model = run.model.eval()
    with torch.no_grad():
        batch = preprocess(model, Pictures(kind).batch())
        rows = rows_of([
            CachedBatch(
                model.backbone(batch['inputs']), batch['data_samples'],
                batch['inputs'].shape)
        ], 0)
    halves = unlike_halves([rows[0]], *rows[1:], 20)
    return float(held_out_loss(*rows[:2], halves))


@pytest.mark.parametrize('kind', KINDS)
def test_held_out_loss_falls_and_only_gates_move(tmp_path: Path,
                                                 kind: str) -> None:
    run = runner(tmp_path, kind)
    before, start = snapshot(run.model), held_out(run, kind)
    run.model.train()
    HoldOutGatesHook(**dict(HOOK, steps=12)).before_train(run)
    assert run.model.training
    after = snapshot(run.model)
    key = 'backbone.fusion.logits.default'
    assert (before.pop(key) == 0).all() and (after.pop(key) != 0).all()
    assert same(before, after)
    assert all(p.grad is None for p in run.model.parameters())
    end = held_out(run, kind)
    assert end < start - 1e-3


@pytest.mark.parametrize('kind', KINDS)
def test_a_step_has_the_gradient_of_one_big_graph(tmp_path: Path,
                                                  kind: str) -> None:
    model = runner(tmp_path, kind, fusion=dict(type='vim_mm.LinearMoE')).model
    model.eval()
    samples = [Pictures(kind)[i] for i in range(8)]
    group = [{k: [s[k] for s in half] for k in samples[0]}
             for half in (samples[:4], samples[4:])]
    weights = model.backbone.fusion.logits['default']
    hook = HoldOutGatesHook(**HOOK)
    loss = hook.backward(model, group)
    cached = []
    for data in group:
        batch = preprocess(model, data)
        cached.append(
            CachedBatch(
                model.backbone(batch['inputs']), batch['data_samples'],
                batch['inputs'].shape))
    rows = rows_of(cached, 0)
    expected = held_out_loss(
        *rows[:2], unlike_halves([rows[0]], *rows[1:], 8), l2=0.1)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6)
    grad, = torch.autograd.grad(expected, weights)
    assert grad.abs().max() > 0
    torch.testing.assert_close(weights.grad, grad, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize('kind', KINDS)
def test_modules_that_learn_too_wait_for_the_training(tmp_path: Path,
                                                      kind: str) -> None:
    run = runner(tmp_path, kind, tune_modules=True)
    learning = {k for k, p in run.model.named_parameters() if p.requires_grad}
    assert any('bank' in key for key in learning)
    before = snapshot(run.model.backbone.bank)
    HoldOutGatesHook(**HOOK).before_train(run)
    # a gradient left behind would be part of the first training step
    assert all(p.grad is None for p in run.model.parameters())
    assert learning == {
        k for k, p in run.model.named_parameters() if p.requires_grad
    }
    assert same(before, snapshot(run.model.backbone.bank))


@pytest.mark.parametrize('kind', KINDS)
def test_streams_weighed_in_a_neck(tmp_path: Path, kind: str) -> None:
    run = runner(tmp_path, kind, streams=True)
    HoldOutGatesHook(**HOOK).before_train(run)
    logits = run.model.neck.fusion.logits['default']
    # each gate reaches its own level alone, and all are judged
    assert (logits != 0).all()
    if kind != 'cls':  # there both modules tell squares apart
        assert (logits[:, 1] > logits[:, 0] + 0.2).all()


def test_a_router_learns_too(tmp_path: Path) -> None:
    run = runner(tmp_path, fusion=dict(type='vim_mm.RoutedMoE'))
    HoldOutGatesHook(**HOOK).before_train(run)
    fusion = run.model.backbone.fusion
    assert fusion.router['default'].abs().sum() > 0
    assert fusion.logits['default'].abs().sum() > 0


def test_it_goes_on_from_the_scores_and_comes_before_the_head(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = [
        dict(type='vim_mm.WarmHeadHook', epochs=1),
        dict(type='vim_mm.HoldOutGatesHook', **HOOK),
        dict(type='vim_mm.ScoreGatesHook', num_extra_tokens=0),
        dict(type='EMAHook')
    ]
    run = runner(tmp_path, hooks=hooks)
    order = [type(h).__name__ for h in run.hooks]
    order = [n for n in order if n.endswith(('GatesHook', 'WarmHeadHook'))]
    assert order == ['ScoreGatesHook', 'HoldOutGatesHook', 'WarmHeadHook']
    scores = []
    # all alike is best
    monkeypatch.setattr(
        ModuleTrials, '_ridge', lambda _, weights: HeldOut(
            1. * (weights == (.5, .5)), torch.zeros(8)))
    hook, = (h for h in run.hooks if isinstance(h, HoldOutGatesHook))
    backward, fusion = hook.backward, run.model.backbone.fusion

    def spy(*args) -> float:
        scores.append(fusion.logits['default'].detach().clone())
        return backward(*args)

    hook.backward = spy
    run.train()
    expected = torch.tensor([.5, .5]).log()
    torch.testing.assert_close(scores[0], expected.expand(6, -1))
    assert len(scores) == HOOK['steps']
    assert fusion.strengths['default'] == 1


def test_a_task_that_is_off_stays_so(tmp_path: Path) -> None:
    run = runner(tmp_path)
    run.model.backbone.fusion.set_weights('default', torch.zeros(2))
    before = snapshot(run.model)
    HoldOutGatesHook(**HOOK).before_train(run)
    assert same(before, snapshot(run.model))


@pytest.mark.parametrize('best', ['learned', 'start', 'trunk'])
def test_what_is_learned_stays_if_it_helps_more(
        tmp_path: Path, best: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order = dict(learned=1., start=1., trunk=0.)
    order[best] += 2

    def score(self, setting) -> HeldOut:
        name = setting if isinstance(setting, str) else 'trunk'
        return HeldOut(order[name], torch.zeros(8))

    monkeypatch.setattr(ModuleTrials, '_ridge', score)
    run = runner(tmp_path)
    HoldOutGatesHook(**dict(HOOK, keep_better=True)).before_train(run)
    gates = run.model.backbone.fusion.gates('default')
    start = torch.full_like(gates, .5)
    if best == 'learned':
        assert gates.sum() > 0 and not torch.equal(gates, start)
    else:
        assert torch.equal(gates, start * (best == 'start'))


def test_an_averaged_model_starts_from_these_gates(tmp_path: Path) -> None:
    run = runner(tmp_path, hooks=[dict(type='EMAHook')])
    run.call_hook('before_run')
    HoldOutGatesHook(**HOOK).before_train(run)
    averaged, = (h.ema_model.module for h in run.hooks
                 if isinstance(h, EMAHook))
    assert torch.equal(averaged.backbone.fusion.logits['default'],
                       run.model.backbone.fusion.logits['default'])


def test_a_process_without_halves_leaves_the_step_to_the_others(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = runner(tmp_path).model.eval()
    params = [model.backbone.fusion.logits['default']]
    hook = HoldOutGatesHook(**HOOK)
    hook.backward = lambda *_: (_ for _ in ()).throw(ValueError('no halves'))
    with pytest.raises(ValueError, match='no halves'):  # nobody has any
        hook._average(model, [], params)
    # one of two processes: the other's gradient counts in full
    reduced = []

    def mean(tensor: torch.Tensor, op: str) -> None:
        reduced.append(tensor.clone())
        tensor.add_(0.5)

    monkeypatch.setattr(hold_out_gates_hook, 'all_reduce', mean)
    monkeypatch.setattr(hold_out_gates_hook, 'average_gradients',
                        lambda params: setattr(params[0], 'grad', params[0] * 0
                                               + 2.))
    assert hook._average(model, [], params) == 0.
    assert reduced[0] == 0 and (params[0].grad == 4.).all()


def test_without_learning_gates_it_says_so(tmp_path: Path) -> None:
    run = runner(tmp_path, fusion=dict(type='vim_mm.FixedFusion'))
    with pytest.raises(ValueError, match='to one that learns'):
        HoldOutGatesHook().before_train(run)


def test_a_resumed_run_keeps_its_gates(tmp_path: Path) -> None:
    run = runner(tmp_path)
    run.train_loop._iter = 3
    HoldOutGatesHook(**HOOK).before_train(run)
    assert (run.model.backbone.fusion.logits['default'] == 0).all()


def test_pictures_that_fill_no_batch_are_a_sentence(tmp_path: Path) -> None:
    run = runner(tmp_path, hooks=[dict(type='vim_mm.HoldOutGatesHook')])
    loader = run.train_dataloader
    run.train_loop.dataloader = torch.utils.data.DataLoader(
        loader.dataset, batch_size=len(loader.dataset) + 1, drop_last=True)
    with pytest.raises(ValueError, match='do not fill one batch'):
        HoldOutGatesHook(steps=1).before_train(run)


@pytest.mark.parametrize(('key', 'value'), [
    *[(key, value) for key in ('steps', 'batches') for value in (0, -1, 2.5)],
    *[('l2', value) for value in (0., -1., float('nan'))]])
def test_settings_of_no_use(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f'`HoldOutGatesHook.{key}` is'):
        HoldOutGatesHook(**{key: value})
