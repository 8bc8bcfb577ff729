# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Two processes that hold a part of each tensor learn the same."""

import os
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from _processes import WORLD, together
from test_multitask_distributed import ITERS, STOP, settings
from torch import Tensor

from _multitask import build, run_cfg, task_cfg
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
SEED = 7
CASES = [('plain', 'whole'), ('plain', 'blocks'), ('moe', 'whole')]


def options(case: str) -> Dict[str, Any]:
    """The run that is compared."""
    own = settings(1, case)
    own.pop('custom_hooks')  # an average would be a copy of the wrapper
    # FSDP takes no scalar parameters, which FCOS has
    own['model'].tasks.det = task_cfg('det')
    # all tasks have run when the first checkpoint is written
    own['randomness'] = dict(seed=SEED)
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
    from mmengine.config import Config

    import vim_mm  # noqa: F401, prepares the stack
    from vim_mm.utils.dist import leave_group, prepare_cpu_dist
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(WORLD),
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
        CUDA_VISIBLE_DEVICES='')
    torch.set_num_threads(1)
    cfg = Config(dict())
    prepare_cpu_dist(cfg, 'pytorch')
    for case in ('plain', 'moe'):
        build(
            Path(folder, case),
            ITERS,
            **options(case),
            launcher='pytorch',
            env_cfg=cfg.env_cfg,
            model_wrapper_cfg=cfg.model_wrapper_cfg).train()
    for case, policy in CASES:
        run = sharded(Path(folder, f'{case}_{policy}'), case, policy)
        run.train()
        assert type(run.model).__name__ == 'MMFullyShardedDataParallel'
        mine = sum(param.numel() for param in run.model.parameters())
        torch.save(mine, f'{folder}/{case}_{policy}_{rank}.pth')
    path = f'{folder}/{case}_{policy}/iter_{STOP}.pth'
    again = sharded(
        Path(folder, 'again'), case, policy, resume=True, load_from=path)
    again.train()
    stop_one(rank, Path(folder, 'stopped'))
    lamb = dict(optimizer=dict(type='mmpretrain.Lamb', lr=1e-3))
    with pytest.raises(ValueError, match='norm of each tensor.* no FSDP'):
        sharded(
            Path(folder, 'lamb'), 'plain', 'whole',
            optim_wrapper=lamb).train()
    leave_group()


def stop_one(rank: int, folder: Path) -> None:
    """Let a signal to the second process stop both, and go on.

    Before all tasks have run there is no optimizer to save.
    """
    hooks = dict(checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=100))
    early = sharded(folder, *CASES[-1], default_hooks=hooks)
    early.register_hook(Asks('before_train_iter', 0))
    with pytest.raises(ValueError, match='No step has trained `.*` yet'):
        early.train()
    first = sharded(folder, *CASES[-1], default_hooks=hooks)
    if rank == 1:
        first.register_hook(Asks('before_train_iter', STOP))
    stopped(first)
    assert (folder / f'iter_{STOP + 1}.pth').exists()
    sharded(folder, *CASES[-1], default_hooks=hooks, resume=True).train()


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


@pytest.mark.parametrize('part', ['again', 'stopped'])
def test_resumed_equals_uninterrupted(folder: Path, part: str) -> None:
    case, policy = CASES[-1]
    whole = learned(folder / f'{case}_{policy}')
    assert same(whole, learned(folder / part))
