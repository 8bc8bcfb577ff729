# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""One task of several is tested whoever builds the model, and when."""

import pickle
import runpy
from pathlib import Path
from typing import Any, List

import pytest
import torch
from _processes import set_rank, together
from mmengine.config import Config
from mmengine.registry import init_default_scope

from _multitask import METRICS, loader, moe, multitask_cfg, run_cfg
from _tiny import fill
from vim_mm.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
#: Heads without scalar parameters, which FSDP does not take.
KINDS = ['cls', 'seg']
STRATEGIES = dict(
    single=dict(type='SingleDeviceStrategy'),
    fsdp=dict(type='vim_mm.FSDPStrategy', state_dict_cfg='full'))


def write(folder: Path) -> None:
    """Configs of one model with each strategy, and its weights."""
    init_default_scope('vim_mm')
    model = multitask_cfg(*KINDS, backbone=moe())
    built = MODELS.build(model)
    fill(built, .2)
    torch.save(dict(state_dict=built.state_dict()), folder / 'model.pth')
    cfg = dict(
        run_cfg(folder / 'run'), model=model,
        test_dataloader={kind: loader(kind, train=False) for kind in KINDS},
        test_evaluator={kind: METRICS[kind] for kind in KINDS},
        test_cfg=dict(type='MultiTaskTestLoop'))
    for part in ('train', 'val'):
        for key in ('dataloader', 'evaluator', 'cfg'):
            cfg.pop(f'{part}_{key}', None)
    del cfg['optim_wrapper']
    Config(cfg).dump(folder / 'plain.py')
    for name, strategy in STRATEGIES.items():
        Config(dict(cfg, runner_type='FlexibleRunner', strategy=strategy)
               ).dump(folder / f'{name}.py')


def predict(folder: Path, name: str, task: str, *args: Any) -> List[dict]:
    """What the tool's test of a task leaves."""
    out = folder / f'{name}_{task}.pkl'
    tool = runpy.run_path(str(ROOT / 'tools/test.py'), run_name='tool')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('sys.argv', [
            'test.py', f'{folder}/{name}.py', f'{folder}/model.pth', '--task',
            task, '--out', str(out), '--work-dir', str(folder / name / task),
            *args])
        tool['main']()
    return out


def alike(one: Path, other: Path) -> bool:
    """Whether both hold the same predictions, of batches put together anew."""
    first, second = (pickle.loads(path.read_bytes()) for path in (one, other))
    values = [torch.stack([
        each['pred_sem_seg']['data'] if 'pred_sem_seg' in each else
        each['pred_score'] for each in part]) for part in (first, second)]
    near = (values[0] - values[1]).abs() < 1e-4
    return near.float().mean() > .99


@pytest.mark.parametrize('task', KINDS)
def test_a_strategy_that_builds_it_late(task: str, tmp_path: Path) -> None:
    write(tmp_path)
    assert alike(predict(tmp_path, 'plain', task),
                 predict(tmp_path, 'single', task))


def test_each_task_has_its_own_part(tmp_path: Path) -> None:
    """Else nothing would be seen of a task that was not chosen."""
    init_default_scope('vim_mm')
    model = MODELS.build(multitask_cfg(*KINDS, backbone=moe()))
    fill(model, .2)
    image = torch.rand(1, 3, 56, 56)
    outputs = []
    for task in KINDS:
        model.select_task(task)
        outputs.append(model.of(task).eval().extract_feat(image)[-1])
    assert outputs[0].shape != outputs[1].shape or not torch.equal(*outputs)


def worker(rank: int, port: int, folder: str) -> None:
    import vim_mm  # noqa: F401, prepares the stack
    from vim_mm.utils.dist import leave_group
    set_rank(rank, port)
    for task in KINDS:
        predict(Path(folder), 'fsdp', task, '--launcher', 'pytorch')
    leave_group()


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    write(tmp_path)
    together(worker, str(tmp_path))
    for task in KINDS:
        plain = predict(tmp_path, 'plain', task)
        assert alike(plain, tmp_path / f'fsdp_{task}.pkl')
