# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Two processes train several tasks without looking for unused parameters."""

from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from _processes import WORLD, join, together
from torch import Tensor

from _multitask import (METRICS, TASKS, build, convnext, loader, moe,
                        multitask_cfg, task_cfg)
from _runs import Asks, stopped
from _tiny import model_cfg, same

pytestmark = pytest.mark.slow

ITERS, STOP = 8, 4


def fcos() -> dict:
    """Unlike RetinaNet it counts the boxes of all processes."""
    cfg = model_cfg('det', {})
    cfg.neck = task_cfg('det').neck
    cfg.bbox_head.update(
        in_channels=8,
        strides=[8, 16, 32],
        regress_ranges=((-1, 24), (24, 48), (48, 1e8)))
    return cfg


def settings(share: int, case: str) -> Dict[str, Any]:
    """A run whose processes have so many samples each."""
    model = multitask_cfg(
        backbone=convnext(drop_path_rate=0.3 * (case == 'random')))
    model.tasks.det = fcos()
    model.tasks.seg.decode_head.norm_cfg = None
    if case == 'moe':
        model.backbone = moe()
        model.routing = dict(type='MutualInformation', weight=0.1, start=1)
    accumulate = 2 if case == 'accumulated' else 1
    optimizer = dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.01)
    hooks = [dict(type='EMAHook')]
    if case == 'random':
        optimizer = dict(type='AdamW', lr=1e-3, weight_decay=0.05)
    return dict(
        model=model,
        train_dataloader={task: loader(task, share)
                          for task in TASKS},
        val_dataloader={
            task:
            loader(task, train=False, sampler=dict(type='DefaultSampler'))
            for task in TASKS
        },
        val_evaluator=dict(METRICS),
        custom_hooks=hooks,
        optim_wrapper=dict(
            optimizer=optimizer,
            clip_grad=dict(max_norm=1.),
            accumulative_counts=accumulate),
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook', by_epoch=False, interval=STOP)))


CASES = ['plain', 'accumulated', 'moe', 'random']
#: Which process gets a signal, and where; the validation is the second task's.
ASKED = dict(
    stopped=(1, 'before_train_iter', 2),
    stopped_in_validation=(0, 'before_val_iter', 5))


def learned(runner: Any) -> Dict[str, Tensor]:
    from vim_mm.utils.wrappers import unwrap
    scalars = runner.message_hub.log_scalars
    found = {
        name: torch.tensor(float(buffer.current()))
        for name, buffer in scalars.items()
        if name.startswith('val/') and not name.endswith('time')
    }
    return dict(found, **unwrap(runner.model).state_dict())


def train(rank: int, port: int, folder: str) -> None:
    import vim_mm  # noqa: F401, prepares the stack
    from vim_mm.utils.dist import leave_group
    cfg = join(rank, port)
    assert not cfg.model_wrapper_cfg.find_unused_parameters
    dist = dict(
        launcher='pytorch',
        env_cfg=cfg.env_cfg,
        model_wrapper_cfg=cfg.model_wrapper_cfg)
    for case in CASES:
        run = build(Path(folder, case), ITERS, **settings(1, case), **dist)
        run.train()
        assert type(run.model).__name__ == 'MMDistributedDataParallel'
        torch.save(learned(run), f'{folder}/{case}{rank}.pth')
    again = build(
        Path(folder, 'again'),
        ITERS,
        **settings(1, case),
        **dist,
        resume=True,
        load_from=f'{folder}/{case}/iter_{STOP}.pth')
    again.train()
    torch.save(learned(again), f'{folder}/again{rank}.pth')
    for name, (signalled, *asks) in ASKED.items():
        own = settings(1, 'random')
        own['default_hooks']['checkpoint']['interval'] = 100
        first = build(Path(folder, name), ITERS, **own, **dist)
        if rank == signalled:
            first.register_hook(Asks(*asks))
        stopped(first)
        later = build(Path(folder, name), ITERS, **own, **dist, resume=True)
        later.train()
        torch.save(learned(later), f'{folder}/{name}{rank}.pth')
    leave_group()


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes have learned in all cases."""
    path = tmp_path_factory.mktemp('multitask')
    together(train, str(path))
    return path


@pytest.mark.parametrize('case', [*CASES, 'again', *ASKED])
def test_processes_stay_equal(folder: Path, case: str) -> None:
    first, second = (
        torch.load(folder / f'{case}{rank}.pth') for rank in range(WORLD))
    assert same(first, second)


@pytest.mark.parametrize('case', ['plain', 'accumulated', 'moe'])
def test_two_processes_equal_one_with_both_shares(folder: Path, tmp_path: Path,
                                                  case: str) -> None:
    both = torch.load(folder / f'{case}0.pth')
    run = build(tmp_path / 'one', ITERS, **settings(2, case))
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    run.train()
    one = learned(run)
    assert one.keys() == both.keys()
    for key, value in one.items():
        # between experts that score alike, rounding may choose for a token
        # or two of more than a thousand
        bound = 2e-3 if key.endswith('.usage') else 1e-6
        torch.testing.assert_close(
            both[key], value, rtol=0, atol=bound, msg=key)
    for part in ('backbone.', *(f'models.{task}.' for task in TASKS)):
        assert any((one[key] - before[key]).abs().max() > 1e-4
                   for key in before if key.startswith(part))


@pytest.mark.parametrize('case', ['again', *ASKED])
def test_resumed_equals_uninterrupted(folder: Path, case: str) -> None:
    """After a signal to one of two processes, too."""
    whole, again = (
        torch.load(folder / f'{name}0.pth') for name in ('random', case))
    assert same(whole, again)
