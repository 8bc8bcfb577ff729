# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Two processes that train with ZeRO learn what those with DDP do.

DeepSpeed compiles an operator of its own when it first runs on a CPU, which
takes a minute or two.
"""

import importlib.util
from pathlib import Path
from typing import Any, Dict, Optional

import pytest
import torch
from _processes import join, together
from test_multitask_distributed import ITERS, STOP, settings
from torch import Tensor

from _multitask import build, run_cfg, task_cfg
from _runs import Asks, stopped
from _tiny import same

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec('deepspeed') is None,
        reason='deepspeed is not installed')
]

STAGES = (1, 2, 3)
#: By name, a case of settings and a stage.
CASES = {
    **{f'moe{stage}': ('moe', stage)
       for stage in STAGES}, 'accumulated1': ('accumulated', 1),
    'accumulated2': ('accumulated', 2)
}
BEST = f'best_cls_accuracy_top1_iter_{ITERS}.pth'
#: Runs that are refused, and what the sentence says.
REFUSED: Dict[str, tuple] = dict(
    lamb=(dict(optim_wrapper=dict(
        optimizer=dict(type='mmpretrain.Lamb', lr=1e-3))),
          'norm of each tensor'),
    averages=(dict(custom_hooks=[dict(type='EMAHook')]), 'EMAHook'),
    clipped_values=(dict(
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=1e-3),
            clip_grad=dict(type='value', clip_value=1.))), 'max_norm'),
    one_process=(dict(launcher='none', env_cfg=dict()), 'needs a launcher'),
    file_without_optimizer=(dict(resume=True, load_from=f'moe1/{BEST}'),
                            'lacks the optimizer'))


def options(case: str) -> Dict[str, Any]:
    """The run that is compared; SGD spares what has no gradient itself."""
    own = settings(1, case)
    own.pop('custom_hooks')
    own['model'].tasks.det = task_cfg('det')
    own['optim_wrapper']['optimizer'] = dict(type='SGD', lr=0.02)
    own['default_hooks']['checkpoint']['save_best'] = 'cls/accuracy/top1'
    return own


def zero(folder: Path, case: str, stage: int, **kwargs: Any) -> Any:
    """A runner of the strategy, on CPUs."""
    from mmengine.config import Config

    from vim_mm.engine.runner import TESTING, TRAINING, build_runner
    cfg = Config(run_cfg(folder, ITERS, **{**options(case), **kwargs}))
    cfg.merge_from_dict(
        dict(
            runner_type='FlexibleRunner',
            launcher=kwargs.get('launcher', 'pytorch'),
            strategy=dict(
                type='vim_mm.DeepSpeedStrategy',
                config=dict(zero_allow_untested_optimizer=True),
                zero_optimization=dict(stage=stage))))
    return build_runner(cfg, TESTING if 'test_cfg' in kwargs else TRAINING)


def judged(folder: Path, path: Path, stage: int) -> Dict[str, float]:
    """The metrics of a checkpoint."""
    own = options('moe')
    return zero(
        folder,
        'moe',
        stage,
        load_from=str(path),
        test_dataloader=own['val_dataloader'],
        test_evaluator=own['val_evaluator'],
        test_cfg=dict(type='MultiTaskTestLoop')).test()


def learned(folder: Path) -> Dict[str, Tensor]:
    return torch.load(folder / BEST, weights_only=False)['state_dict']


def train(rank: int, port: int, folder: str) -> None:
    import vim_mm  # noqa: F401, prepares the stack
    from vim_mm.utils.dist import leave_group
    root, cfg = Path(folder), join(rank, port)
    for case in ('moe', 'accumulated'):
        build(
            root / case,
            ITERS,
            **options(case),
            launcher='pytorch',
            env_cfg=cfg.env_cfg,
            model_wrapper_cfg=cfg.model_wrapper_cfg).train()
    for name, (case, stage) in CASES.items():
        run = zero(root / name, case, stage)
        run.train()
        kind = type(run.optim_wrapper.optimizer).__name__
        assert kind.startswith('DeepSpeedZero')
        path = root / name / f'iter_{STOP}.pth'
        zero(
            root / f'again_{name}', case, stage, resume=True,
            load_from=str(path)).train()
    stop_one(rank, root / 'stopped')
    found = {
        path: judged(root / 'judged', root / path, int(path[3]))
        for path in (f'moe1/iter_{ITERS}.pth', f'moe1/{BEST}', f'moe3/{BEST}')
    }
    torch.save(found, root / f'metrics{rank}.pth')
    for own, words in REFUSED.values():
        with pytest.raises(ValueError, match=words):
            refused(root, **own)
    leave_group()


def refused(root: Path, load_from: Optional[str] = None,
            **kwargs: Any) -> None:
    load_from = load_from and str(root / load_from)
    zero(root / 'refused', 'plain', 1, load_from=load_from, **kwargs).train()


def stop_one(rank: int, folder: Path) -> None:
    """Let a signal to the second process stop both, and go on.

    It comes between the two parts of a step, which is finished first.
    """
    own = options('accumulated')['default_hooks']
    own['checkpoint']['interval'] = 100
    first = zero(folder, 'accumulated', 1, default_hooks=own)
    if rank == 1:
        first.register_hook(Asks('before_train_iter', STOP))
    stopped(first)
    assert (folder / f'iter_{STOP + 2}.pth').is_dir()
    # what a process that is killed while it saves may leave
    (folder / f'iter_{STOP + 4}.pth').mkdir(exist_ok=True)
    zero(folder, 'accumulated', 1, default_hooks=own, resume=True).train()


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes have learned in all cases."""
    path = tmp_path_factory.mktemp('zero')
    together(train, str(path))
    return path


@pytest.mark.parametrize('name', CASES)
def test_parts_learn_what_whole_tensors_do(folder: Path, name: str) -> None:
    whole, parts = learned(folder / CASES[name][0]), learned(folder / name)
    assert whole.keys() == parts.keys()
    for key, value in whole.items():
        torch.testing.assert_close(
            parts[key], value, rtol=0, atol=1e-6, msg=key)


@pytest.mark.parametrize('name', [*CASES, 'stopped'])
def test_resumed_equals_uninterrupted(folder: Path, name: str) -> None:
    if name == 'stopped':
        assert same(learned(folder / name), learned(folder / 'accumulated1'))
    else:
        assert same(learned(folder / f'again_{name}'), learned(folder / name))


def test_folders_and_files_are_judged_alike(folder: Path) -> None:
    first, second, third = torch.load(
        folder / 'metrics0.pth', weights_only=False).values()
    assert first and first == second
    assert third == pytest.approx(first, abs=1e-4)


def test_folder_is_an_ordinary_checkpoint(folder: Path) -> None:
    """Read without DeepSpeed, and without running code."""
    from mmengine.runner import CheckpointLoader

    from vim_mm.utils.checkpoint import CheckpointError
    path = folder / 'moe2' / f'iter_{ITERS}.pth'
    found = CheckpointLoader.load_checkpoint(str(path), 'cpu')
    assert found['meta']['iter'] == ITERS
    assert same(found['state_dict'], learned(folder / 'moe2'))
    with pytest.raises(CheckpointError, match='zero_to_fp32.py'):
        CheckpointLoader.load_checkpoint(
            str(folder / 'moe3' / f'iter_{ITERS}.pth'))
