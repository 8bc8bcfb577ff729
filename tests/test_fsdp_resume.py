# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A run whose processes hold a part of each tensor resumes, in short.

Whole runs, policies and signals are in test_multitask_fsdp.py.
"""

from pathlib import Path

import pytest
import torch
from _processes import join, together
from test_multitask_fsdp import POLICIES, STRATEGY
from test_trial_strategies import flexible
from test_wrong_uses import ZOO
from torch.distributed.fsdp import FullyShardedDataParallel

from _distill import CRITERIA, distiller_cfg
from _tiny import same

ITERS, STOP = 4, 2
#: Parts within parts, of which one alone is the whole model.
PARTS = dict(STRATEGY, model_wrapper=dict(
    auto_wrap_policy=POLICIES['blocks']))


def worker(rank: int, port: int, folder: str) -> None:
    import vim_mm  # noqa: F401, prepares the stack
    from vim_mm.utils.dist import leave_group
    cfg = join(rank, port)
    own = {
        'strategy': PARTS, 'launcher': 'pytorch', 'env_cfg': cfg.env_cfg,
        'randomness': dict(seed=1), 'train_cfg.max_iters': ITERS,
        'default_hooks': dict(checkpoint=dict(
            type='CheckpointHook', by_epoch=False, interval=STOP))}
    whole = flexible('seg', {}, Path(folder, 'whole'), **own)
    again = flexible(
        'seg', dict(resume=True, load_from=str(saved(folder, 'whole', STOP))),
        Path(folder, 'again'), **own)
    assert whole.iter == again.iter == ITERS
    parts = [name for name, part in again.model.named_modules()
             if isinstance(part, FullyShardedDataParallel)]
    assert len(parts) > 2 and not any('bank' in name for name in parts)
    hooks = dict(custom_hooks=[dict(ZOO, task='seg')])
    with pytest.raises(ValueError, match='ModuleToZooHook works with whole'):
        flexible('seg', hooks, Path(folder, f'published_{rank}'), **own)
    Path(folder, str(rank)).mkdir()
    model = distiller_cfg(Path(folder, str(rank)), 'seg', CRITERIA)
    with pytest.raises(ValueError, match='Distiller works with whole'):
        flexible('seg', dict(model=dict(model, _delete_=True)),
                 Path(folder, f'distilled_{rank}'), **own)
    leave_group()


def saved(folder: str, name: str, step: int) -> Path:
    return Path(folder, name, 'run', f'iter_{step}.pth')


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    together(worker, str(tmp_path))
    assert not saved(str(tmp_path), 'again', STOP).exists()
    states = [torch.load(saved(str(tmp_path), name, ITERS),
                         weights_only=False)['state_dict']
              for name in ('whole', 'again')]
    assert same(*states)
