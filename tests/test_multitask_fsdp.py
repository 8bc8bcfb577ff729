# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Two processes that hold a part of each tensor learn the same."""

from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from _processes import WORLD, join, together
from test_multitask_distributed import ITERS, STOP, settings
from torch import Tensor

from _multitask import TASKS, build, run_cfg, task_cfg
from _runs import Asks, stopped
from _tiny import same

pytestmark = pytest.mark.slow

STRATEGY = dict(type='vim_mm.FSDPStrategy', state_dict_cfg='full')
#: each block is gathered when it runs, or the whole model at once
POLICIES = dict(
    whole=None,
    blocks=dict(
        type='torch.distributed.fsdp.wrap.size_based_auto_wrap_policy',
        min_num_params=500))
CASES = [('plain', 'whole'), ('plain', 'blocks'), ('moe', 'blocks'),
         ('moe', 'whole')]
#: By name, a run, and where a signal to the second process stops it. After a
#: step only one task has run, and the optimizer knows nothing of the others.
ASKED = dict(
    stopped=('moe', 'whole', 'before_train_iter', STOP),
    early=('moe', 'whole', 'before_train_iter', 0),
    early_blocks=('plain', 'blocks', 'before_train_iter', 0),
    early_random=('random', 'whole', 'before_train_iter', 1),
    early_validation=('random', 'whole', 'before_val_iter', 1))


def options(case: str) -> Dict[str, Any]:
    """The run that is compared."""
    own = settings(1, case)
    own.pop('custom_hooks')  # an average would be a copy of the wrapper
    # FSDP takes no scalar parameters, which FCOS has
    own['model'].tasks.det = task_cfg('det')
    return own


def sharded(folder: Path, case: str, policy: str, **kwargs: Any) -> Any:
    """A runner of a strategy, on CPUs."""
    from mmengine.config import Config

    from vim_mm.engine.runner import TRAINING, build_runner
    own = options(case)
    strategy = Config(STRATEGY)._cfg_dict
    if POLICIES[policy]:
        strategy.model_wrapper = dict(auto_wrap_policy=POLICIES[policy])
    cfg = Config(run_cfg(folder, ITERS, **{**own, **kwargs}))
    cfg.merge_from_dict(
        dict(
            runner_type='FlexibleRunner',
            launcher='pytorch',
            strategy=strategy))
    return build_runner(cfg, TRAINING)


def learned(folder: Path) -> Dict[str, Tensor]:
    path = folder / f'iter_{ITERS}.pth'
    return torch.load(path, weights_only=False)['state_dict']


def train(rank: int, port: int, folder: str) -> None:
    import vim_mm  # noqa: F401, prepares the stack
    from vim_mm.utils.dist import leave_group
    cfg = join(rank, port)
    for case in ('plain', 'moe'):
        build(
            Path(folder, case),
            ITERS,
            **options(case),
            launcher='pytorch',
            env_cfg=cfg.env_cfg,
            model_wrapper_cfg=cfg.model_wrapper_cfg).train()
    for case, policy in [('random', 'whole'), *CASES]:
        run = sharded(Path(folder, f'{case}_{policy}'), case, policy)
        run.train()
        assert type(run.model).__name__ == 'MMFullyShardedDataParallel'
        mine = sum(param.numel() for param in run.model.parameters())
        torch.save(mine, f'{folder}/{case}_{policy}_{rank}.pth')
    path = f'{folder}/{case}_{policy}/iter_{STOP}.pth'
    again = sharded(
        Path(folder, 'again'), case, policy, resume=True, load_from=path)
    again.train()
    for name in ASKED:
        stop_one(rank, Path(folder, name))
    lamb = dict(optimizer=dict(type='mmpretrain.Lamb', lr=1e-3))
    with pytest.raises(ValueError, match='norm of each tensor.* FSDP'):
        sharded(
            Path(folder, 'lamb'), 'plain', 'whole',
            optim_wrapper=lamb).train()
    leave_group()


def stop_one(rank: int, folder: Path) -> None:
    """Let a signal to the second process stop both, and go on."""
    case, policy, point, at = ASKED[folder.name]
    own = dict(
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook', by_epoch=False, interval=100)))
    if 'val' in point:
        own['train_cfg'] = dict(
            type='MultiTaskTrainLoop', max_iters=ITERS, val_interval=1,
            weights=dict(cls=15, det=10, seg=5))
    first = sharded(folder, case, policy, **own)
    if rank == 1:
        first.register_hook(Asks(point, at))
    stopped(first)
    step = at + 1 if 'train' in point else 1
    assert (folder / f'iter_{step}.pth').exists()
    sharded(folder, case, policy, resume=True, **own).train()


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes have learned in all cases."""
    path = tmp_path_factory.mktemp('sharded')
    together(train, str(path))
    return path


@pytest.mark.parametrize(('case', 'policy'), CASES)
def test_parts_learn_what_whole_tensors_do(folder: Path, case: str,
                                           policy: str) -> None:
    """Those of two processes with all of them each (DDP)."""
    whole, parts = learned(folder / case), learned(folder / f'{case}_{policy}')
    assert whole.keys() == parts.keys()
    for key, value in whole.items():
        torch.testing.assert_close(
            parts[key], value, rtol=0, atol=1e-6, msg=key)
    held = [
        torch.load(folder / f'{case}_{policy}_{rank}.pth')
        for rank in range(WORLD)
    ]
    assert max(held) < 0.6 * sum(held)


@pytest.mark.parametrize('name', ['again', *ASKED])
def test_resumed_equals_uninterrupted(folder: Path, name: str) -> None:
    case, policy = ASKED[name][:2] if name in ASKED else CASES[-1]
    whole = learned(folder / f'{case}_{policy}')
    assert same(whole, learned(folder / name))


@pytest.mark.parametrize('name', [name for name in ASKED if 'early' in name])
def test_what_has_not_been_trained_has_no_state(folder: Path,
                                                name: str) -> None:
    """Where the optimizer itself had none."""
    first = min(folder.glob(f'{name}/iter_*.pth'))
    optimizer = torch.load(first, weights_only=False)['optimizer']
    known = {
        task: any(key.startswith(f'models.{task}.') for key in
                  optimizer['state'])
        for task in TASKS
    }
    assert sorted(known.values()) in ([False, False, True],
                                      [False, True, True])
    assert all(optimizer['state'].values())
    assert any(key.startswith('backbone.') for key in optimizer['state'])
