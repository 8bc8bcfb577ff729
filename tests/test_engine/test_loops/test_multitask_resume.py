# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A run that was interrupted ends as one that was not, bit for bit."""

from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

import pytest
import torch
from torch import Tensor

from _multitask import TASKS, build, convnext, loader, moe, multitask_cfg
from _tiny import first_of

ITERS, STOP = 9, 4
LAMB = dict(
    optimizer=dict(type='mmpretrain.Lamb', lr=4e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=0.1))
ONE_CYCLE = dict(
    type='OneCycleLR', eta_max=4e-3, total_steps=ITERS, by_epoch=False)
EMA = dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.1)


def settings(workers: int = 0, **kwargs: Any) -> dict:
    """Random in the data, in the trunk and in a head."""
    model = multitask_cfg(backbone=convnext(drop_path_rate=0.5))
    model.tasks.seg.decode_head.dropout_ratio = 0.5
    options = dict(
        model=model,
        train_dataloader={
            task: loader(task, num_workers=workers)
            for task in TASKS
        },
        optim_wrapper=LAMB,
        param_scheduler=[ONE_CYCLE],
        custom_hooks=[EMA],
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook', by_epoch=False, interval=STOP)))
    return {**options, **kwargs}


def tensors(part: Any, name: str = '') -> Iterator[Tuple[str, Tensor]]:
    """All numbers of a checkpoint's part, by name."""
    if isinstance(part, dict):
        for key, value in part.items():
            yield from tensors(value, f'{name}.{key}')
    elif isinstance(part, (list, tuple)):
        for index, value in enumerate(part):
            yield from tensors(value, f'{name}.{index}')
    elif isinstance(part, (Tensor, int, float)):
        yield name, torch.as_tensor(part)


def states(folder: Path) -> Dict[str, Tensor]:
    found = torch.load(folder / f'iter_{ITERS}.pth', weights_only=False)
    kept = ('state_dict', 'optimizer', 'ema_state_dict', 'param_schedulers')
    return {
        name: value
        for part in kept if part in found
        for name, value in tensors(found[part], part)
    }


def check_resumed(folder: Path, first: dict, later: dict) -> None:
    whole, part = folder / 'whole', folder / 'part'
    build(whole, ITERS, **first).train()
    path = str(whole / f'iter_{STOP}.pth')
    build(part, ITERS, load_from=path, resume=True, **later).train()
    expected, found = states(whole), states(part)
    assert found.keys() == expected.keys()
    differ = [
        key for key, value in expected.items()
        if not torch.equal(value, found[key])
    ]
    assert not differ
    stopped = torch.load(path, weights_only=False)['state_dict']
    assert not any(
        torch.equal(value, stopped[key.partition('.')[2]])
        for key, value in expected.items()
        if key.startswith('state_dict.backbone') and 'weight' in key)


@pytest.mark.parametrize('workers', first_of([2, 0]))
def test_resumed_equals_uninterrupted(tmp_path: Path, workers: int) -> None:
    """The resumed run may have other workers than the first."""
    first, later = settings(workers), settings(2 - workers)
    check_resumed(tmp_path, first, later)


def test_a_seed_that_was_drawn_is_kept(tmp_path: Path) -> None:
    free = settings(randomness=dict(seed=None))
    check_resumed(tmp_path, free, free)


@pytest.mark.parametrize('counts', first_of([2, 4]))
def test_with_accumulated_gradients(tmp_path: Path, counts: int) -> None:
    wrapper = dict(
        optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.05),
        accumulative_counts=counts)
    cfg = settings(optim_wrapper=wrapper)
    check_resumed(tmp_path, cfg, cfg)


@pytest.mark.slow
def test_with_experts_and_the_means_of_their_routing(tmp_path: Path) -> None:
    cfg = settings()
    cfg['model'].backbone = moe(drop_path_rate=0.5)
    cfg['model'].routing = dict(
        type='vim_mm.MutualInformation', weight=0.1, start=1)
    check_resumed(tmp_path, cfg, cfg)
    counts = [
        value for name, value in states(tmp_path / 'part').items()
        if name.startswith('state_dict.routing') and name.endswith('.count')
    ]
    assert counts and min(counts) >= 0 and max(counts) > STOP / 2
