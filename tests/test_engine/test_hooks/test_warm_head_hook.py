# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The head learns on cached features before the run's first step."""

from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner

from _tiny import (DIMS, KINDS, build_runner, fusion_neck, losses, model_cfg,
                   same, save_trunk, snapshot)
from vim_mm.engine.hooks import WarmHeadHook
from vim_mm.engine.hooks.warm_head_hook import head_parameters
from vim_mm.features.cache import finite


def runner(kind: str, folder: Path, neck: dict = None, **kwargs) -> Runner:
    backbone = dict(
        trunk=save_trunk(folder / 'trunk.pth'), new_module='n')
    model = model_cfg(kind, backbone, neck or fusion_neck(kind))
    hooks = kwargs.pop('hooks', [])
    return build_runner(kind, model, folder, custom_hooks=hooks, **kwargs)


@pytest.mark.parametrize('kind', KINDS)
def test_the_first_loss_is_lower(kind: str, tmp_path: Path) -> None:
    first = []
    for folder, hooks in (('cold', []),
                          ('warm', [dict(type='vim_mm.WarmHeadHook',
                                         epochs=25, optimizer=dict(
                                             type='AdamW', lr=1e-2))])):
        (tmp_path / folder).mkdir()
        run = runner(kind, tmp_path / folder, hooks=hooks, iters=1, lr=1e-60)
        before = snapshot(run.model.backbone)
        run.train()
        assert same(snapshot(run.model.backbone), before)
        first.append(float(losses(run)[0]))
    assert first[1] < 0.7 * first[0]


def test_standardisers_are_fitted(tmp_path: Path) -> None:
    neck = dict(
        type='vim_mm.StandardizedPooling',
        in_channels=6 * DIMS,
        num_extra_tokens=0)
    run = runner('cls', tmp_path, neck)
    run.model.head.fc = torch.nn.Linear(6 * DIMS, 2)
    WarmHeadHook(epochs=0).before_train(run)
    pooled = torch.cat([
        run.model.neck(run.model.backbone(
            run.model.data_preprocessor(data, True)['inputs']))[0]
        for data in finite(run.train_dataloader)
    ])
    torch.testing.assert_close(
        pooled.mean(0), torch.zeros(6 * DIMS), atol=1e-3, rtol=0)


def test_a_resumed_run_is_not_warmed_again(tmp_path: Path) -> None:
    run = runner('cls', tmp_path)
    run.train_loop._iter = 3
    before = snapshot(run.model)
    WarmHeadHook(epochs=5).before_train(run)
    assert same(snapshot(run.model), before)


def test_parameters_of_the_head(tmp_path: Path) -> None:
    run = runner('cls', tmp_path)
    run.model.head.fc.bias.requires_grad_(False)
    expected = {id(run.model.head.fc.weight)} | {
        id(p) for p in run.model.neck.parameters()}
    assert {id(p) for p in head_parameters(run.model)} == expected
