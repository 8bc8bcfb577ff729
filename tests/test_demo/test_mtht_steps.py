# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Steps of the demo of MTHT: reused until something they read changes."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config

from _tiny import first_of
from vim_mm.demo import common, mtht, mtht_runs


@pytest.fixture
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ('tree_crowns', 'solar_cells', 'digits_on_photographs'):
        (tmp_path / 'data' / name).mkdir(parents=True)
        (tmp_path / 'data' / name / 'manifest.json').write_text('{}')
    monkeypatch.setattr(common, 'default_out', lambda n: tmp_path / 'data' / n)
    return tmp_path / 'out'


def finish(name: str, work_dir: Path) -> None:
    path = work_dir / name / 'result.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    key = mtht.fingerprint(name, work_dir)
    path.write_text(json.dumps(dict(fingerprint=key, format=common.FORMAT)))


@pytest.mark.parametrize('name', first_of(list(mtht.STEPS)))
def test_a_finished_step_is_reused(name: str, work_dir: Path) -> None:
    assert not mtht.finished(name, work_dir)
    finish(name, work_dir)
    assert mtht.finished(name, work_dir)
    assert not mtht.finished(name, work_dir, seed=1)


@pytest.mark.slow
def test_later_steps_depend_on_the_trunk(work_dir: Path) -> None:
    for name in mtht.STEPS:
        finish(name, work_dir)
    mtht.trunk_file(work_dir).write_bytes(b'another trunk')
    assert mtht.finished('joint', work_dir)
    assert not any(
        mtht.finished(name, work_dir) for name in mtht.STEPS
        if name != 'joint')


def test_configs_read_what_the_demo_writes(work_dir: Path) -> None:
    """By themselves they read the default folder, in the demo its own."""
    path = mtht.CONFIGS / 'mtht' / 'demo_adapt-solar-cells.py'
    cfg = Config.fromfile(path)
    default = Path('work_dirs/demo_mtht')
    assert cfg.model.backbone.checkpoint == str(mtht.trunk_file(default))
    cfg = mtht.step_config('adaptation', work_dir)
    assert cfg.model.backbone.checkpoint == str(mtht.trunk_file(work_dir))
    joint = mtht.step_config('joint', work_dir)
    cfg = Config.fromfile(path.parent / 'demo_continual-solar-cells.py')
    last = f'iter_{joint.train_cfg.max_iters}.pth'
    assert cfg.load_from == str(default / 'joint' / last)


@pytest.mark.parametrize('name', ['joint', 'continual'])
def test_schedules_end_with_the_run(name: str, work_dir: Path) -> None:
    cfg = mtht.step_config(name, work_dir)
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters
    assert cfg.train_cfg.val_interval == cfg.train_cfg.max_iters


def test_every_task_of_the_demo_is_judged(work_dir: Path) -> None:
    cfg = mtht.step_config('continual', work_dir)
    assert set(cfg.val_evaluator) == set(mtht_runs.TASKS)
    assert cfg.model.learn_tasks == ['solar']
