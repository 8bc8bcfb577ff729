# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Short runs of real models: they learn, resume, average and test."""

from pathlib import Path

import pytest
import torch
from mmengine.hooks import EMAHook
from torch import Tensor

from _tiny import (KINDS, Pictures, build_runner, fusion_neck, losses,
                   model_cfg, same, save_trunk, snapshot)

EMA = dict(type='EMAHook', momentum=0.2, update_buffers=True)


def model(kind: str, folder: Path, **backbone) -> dict:
    trunk = save_trunk(folder / 'trunk.pth')
    backbone = dict(dict(trunk=trunk, new_module='n'), **backbone)
    return model_cfg(kind, backbone, fusion_neck(kind))


def outputs(kind: str, trained: torch.nn.Module) -> Tensor:
    trained.eval()
    with torch.no_grad():
        results = trained.test_step(Pictures(kind).batch())
    if kind == 'cls':
        return torch.stack([r.pred_score for r in results])
    if kind == 'seg':
        return torch.stack([r.seg_logits.data for r in results])
    return torch.cat([r.pred_instances.bboxes for r in results])


@pytest.mark.parametrize('kind', KINDS)
def test_train_resume_and_test(kind: str, tmp_path: Path) -> None:
    run = build_runner(
        kind, model(kind, tmp_path), tmp_path, iters=40, custom_hooks=[EMA])
    before = snapshot(run.model.backbone.trunk)
    run.train()
    curve = losses(run)
    assert len(curve) == 40
    assert curve[-5:].mean() < 0.6 * curve[:5].mean()
    assert same(snapshot(run.model.backbone.trunk), before)
    ups = [p for n, p in run.model.backbone.bank.named_parameters()
           if '.up.weight' in n]
    assert len(ups) == 6 and all(p.abs().sum() > 0 for p in ups)

    # the checkpoint holds what was learned, averaged, and no trunk
    path = tmp_path / 'iter_40.pth'
    saved = torch.load(path, weights_only=False)
    averaged, = (h.ema_model.module for h in run.hooks
                 if isinstance(h, EMAHook))
    assert not [k for part in ('state_dict', 'ema_state_dict')
                for k in saved[part] if '.trunk.' in k]
    assert same(saved['state_dict'], averaged.state_dict())
    assert same(snapshot(averaged.backbone.trunk), before)

    # resumed from it, the run goes on where it was
    resumed = build_runner(
        kind, model(kind, tmp_path), tmp_path, iters=44, custom_hooks=[EMA],
        resume=True)
    resumed.train()
    assert resumed.iter == 44
    curve_resumed = losses(resumed)
    assert len(curve_resumed) == 44
    assert torch.equal(curve_resumed[:40], curve)
    assert curve_resumed[40:].mean() < 0.6 * curve[:5].mean()

    # tested from it, another process has the averaged model
    tested = build_runner(
        kind, model(kind, tmp_path), tmp_path, load_from=str(path))
    tested.load_or_resume()
    assert torch.equal(outputs(kind, tested.model), outputs(kind, averaged))
    assert len(outputs(kind, tested.model))


@pytest.mark.parametrize('kind', KINDS)
def test_another_trunk_cannot_be_tested_by_mistake(kind: str,
                                                   tmp_path: Path) -> None:
    run = build_runner(kind, model(kind, tmp_path), tmp_path, iters=1)
    run.train()
    other = model(kind, tmp_path, trunk=save_trunk(tmp_path / 'b.pth', seed=1))
    tested = build_runner(
        kind, other, tmp_path, load_from=str(tmp_path / 'iter_1.pth'))
    with pytest.raises(ValueError, match='trained beside another trunk'):
        tested.load_or_resume()


def loader(sampler: str) -> dict:
    return dict(
        dataset=Pictures('seg'),
        batch_size=4,
        num_workers=0,
        sampler=dict(type=sampler, shuffle=True),
        collate_fn=dict(type='pseudo_collate'))


@pytest.mark.parametrize('sampler', ['InfiniteSampler', 'DefaultSampler'])
def test_a_warm_head_leaves_the_sampler_to_training(
        sampler: str, tmp_path: Path) -> None:
    """Configs by iterations have an infinite one, others a finite one."""
    cfg = dict(by_epoch=True, max_epochs=2)
    if sampler == 'InfiniteSampler':
        cfg = dict(by_epoch=False, max_iters=6)
    run = build_runner(
        'seg',
        model('seg', tmp_path),
        tmp_path,
        train_cfg=cfg,
        train_dataloader=loader(sampler),
        custom_hooks=[dict(type='vim_mm.WarmHeadHook', epochs=2)])
    run.train()
    assert len(losses(run)) == (6 if sampler == 'InfiniteSampler' else 4)
