# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Two processes on CPUs train one module together."""

from pathlib import Path
from typing import Optional

import pytest
import torch
from _processes import WORLD, join, together

from _tiny import (DIMS, add_modules, build_backbone, fusion_neck, model_cfg,
                   same, save_trunk)
from vim_mm.zoo import Zoo, save_module

HOOKS = [
    dict(type='vim_mm.ScoreGatesHook', num_extra_tokens=0),
    dict(
        type='vim_mm.HoldOutGatesHook',
        steps=3,
        num_extra_tokens=0,
        keep_better=False),
    dict(type='vim_mm.WarmHeadHook', epochs=2),
]


def train(rank: int, port: int, kind: str, folder: str, backbone: dict,
          hooks: list, neck: dict) -> None:
    import vim_mm  # noqa: F401, prepares the stack
    from _tiny import build_runner, losses, snapshot
    from vim_mm.utils.dist import leave_group
    from vim_mm.utils.wrappers import unwrap
    cfg = join(rank, port)
    run = build_runner(
        kind,
        model_cfg(kind, backbone, neck),
        Path(folder),
        iters=6,
        batch_size=2,
        launcher='pytorch',
        env_cfg=cfg.env_cfg,
        # ranks draw differently: only their exchange makes them equal
        randomness=dict(seed=0, diff_rank_seed=True),
        experiment_name='two',
        cfg=dict(model_wrapper_cfg=cfg.model_wrapper_cfg),
        custom_hooks=hooks)
    before = snapshot(unwrap(run.model).backbone.trunk)
    run.train()
    model = unwrap(run.model)
    torch.save(
        dict(
            wrapper=type(run.model).__name__,
            before=before,
            trunk=snapshot(model.backbone.trunk),
            rest=model.state_dict(),
            losses=losses(run)), f'{folder}/rank{rank}.pth')
    leave_group()


def spawn(kind: str,
          folder: Path,
          backbone: dict,
          hooks: list,
          neck: Optional[dict] = None) -> list:
    neck = neck or fusion_neck(kind)
    together(train, kind, str(folder), backbone, hooks, neck)
    return [torch.load(folder / f'rank{rank}.pth') for rank in range(WORLD)]


def save_modules(folder: Path, trunk: dict, std: float = .2) -> dict:
    midstream = build_backbone(trunk)
    add_modules(midstream, 'a', 'b', std=std)
    for name in ('a', 'b'):
        save_module(midstream, name, str(folder / 'zoo'))
    return dict(zoo=str(folder / 'zoo'), modules=['a', 'b'])


@pytest.mark.parametrize(('kind', 'hooks', 'fusion'),
                         [('cls', HOOKS, 'RoutedMoE'),
                          pytest.param('det', [], 'EnsMoE',
                                       marks=pytest.mark.slow)])
def test_both_ranks_hold_the_same_weights(tmp_path: Path, kind: str,
                                          hooks: list, fusion: str) -> None:
    trunk = save_trunk(tmp_path / 'trunk.pth')
    backbone = dict(trunk=trunk, new_module='n', fusion=dict(type=fusion))
    if fusion == 'RoutedMoE':
        backbone.update(save_modules(tmp_path, trunk), tune_modules=True)
    first, second = spawn(kind, tmp_path, backbone, hooks)
    assert first['wrapper'] == 'MMDistributedDataParallel'
    buffers = {k for k in first['rest'] if 'running_' in k or 'batches' in k}
    for result in (first, second):
        assert same(result['trunk'], result['before'])
    assert same(first['trunk'], second['trunk'])
    keys = first['rest'].keys() - buffers
    assert keys == second['rest'].keys() - buffers
    assert same({k: first['rest'][k] for k in keys},
                {k: second['rest'][k] for k in keys})
    ups = [v for k, v in first['rest'].items() if '.up.weight' in k]
    num = len(backbone.get('modules', [])) + 1
    assert len(ups) == 6 * num and all(v.abs().sum() > 0 for v in ups)
    if fusion == 'RoutedMoE':  # what the hooks and the training have learned
        logits, router = (first['rest'][f'backbone.fusion.{name}.default']
                          for name in ('logits', 'router'))
        assert logits.std(dim=0).min() > 1e-4 and router.abs().max() > 1e-2
        stored = Zoo(tmp_path / 'zoo').load('a')[1]
        tuned = 'backbone.bank.members.a.layers-0-attn.down.weight'
        assert not torch.equal(first['rest'][tuned],
                               stored['layers.0.attn.down.weight'])
    assert torch.isfinite(first['losses']).all()
    assert not torch.equal(first['losses'], torch.zeros(6))
    assert (tmp_path / 'iter_6.pth').exists()


def disagree(rank: int, port: int, folder: str) -> None:
    import torch.distributed as dist

    from vim_mm.engine.hooks.module_to_zoo_hook import check_agreement
    from vim_mm.utils.dist import leave_group
    dist.init_process_group(
        'gloo',
        init_method=f'tcp://127.0.0.1:{port}',
        rank=rank,
        world_size=WORLD)
    check_agreement('same', dict(w=torch.ones(3)))
    with pytest.raises(RuntimeError, match="different weights of module 'x'"):
        check_agreement('x', dict(w=torch.full((3, ), float(rank))))
    leave_group()
    Path(folder, f'done{rank}').touch()


def test_processes_that_disagree_save_nothing(tmp_path: Path) -> None:
    together(disagree, str(tmp_path))
    assert len(list(tmp_path.iterdir())) == WORLD


def test_levels_may_stay_unread(tmp_path: Path) -> None:
    """A level without source, one that the inner neck skips, and streams.

    Each alone ends the second step, unless unused parameters are looked for;
    test_unread_levels.py has more of them.
    """
    trunk = save_trunk(tmp_path / 'trunk.pth')
    backbone = dict(trunk=trunk, new_module='n', **save_modules(
        tmp_path, trunk))
    inner = dict(
        type='mmdet.FPN',
        in_channels=[DIMS] * 2,
        out_channels=DIMS,
        start_level=1,
        num_outs=1)
    neck = dict(
        type='vim_mm.ViMFusionNeck',
        in_channels=[DIMS] * 3,
        scales=(1, 1),
        sources=[[1], [2]],
        modules=['a', 'b', 'n'],
        inner_neck=inner)
    first, second = spawn('seg', tmp_path, backbone, [], neck)
    assert first['wrapper'] == 'MMDistributedDataParallel'
    assert same(
        *({k: v for k, v in r['rest'].items() if 'bank' in k or 'neck' in k}
          for r in (first, second)))


def test_modules_that_do_not_help_leave_nobody_waiting(
        tmp_path: Path) -> None:
    """Gates that are off still get the gradients that wrappers wait for."""
    trunk = save_trunk(tmp_path / 'trunk.pth')
    backbone = dict(trunk=trunk, fusion=dict(type='EnsMoE'),
                    **save_modules(tmp_path, trunk, std=1e-4))
    first, second = spawn('cls', tmp_path, backbone, HOOKS)
    assert same(first['rest'], second['rest'])
    assert first['rest']['backbone.fusion.strength_of_default'] == 0
    assert (first['rest']['backbone.fusion.logits.default'] == 0).all()
