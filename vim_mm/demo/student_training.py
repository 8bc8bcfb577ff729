# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Configs, trainings and costs of the steps of ``tools/demo.py student``."""

import gc
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

from mmengine.config import Config
from mmengine.runner import Runner

from vim_mm.report import Row
from vim_mm.report.comparison import (StageHook, peak_memory_mb,
                                      reset_peak_memory)
from .common import CONFIGS


class Costs:
    """Wall time and peak memory since it was made.

    Args:
        seed (int): Of the run, for its rows.
    """

    def __init__(self, seed: int) -> None:
        reset_peak_memory()
        self.seed = seed
        self.start = time.perf_counter()

    def row(self, step: str, task: str, method: str, metric: str,
            value: float, n_train: int, n_test: int) -> Row:
        """A row with what has been spent so far."""
        return Row(step, task, method, metric, value, n_train, n_test,
                   round(time.perf_counter() - self.start, 1),
                   round(peak_memory_mb(), 1), self.seed)


def config(name: str, work_dir: Path, seed: int) -> Config:
    """A config whose files are those of this demo's folder."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    moved = _move(cfg.to_dict(), str(work_dir))
    # formatting it takes a second, several times a run
    cfg = Config(moved, filename=cfg.filename, format_python_code=False)
    cfg.randomness = dict(seed=seed)
    return cfg


def _move(value: Any, work_dir: str) -> Any:
    """A config whose paths lead into another folder."""
    if isinstance(value, dict):
        return {key: _move(each, work_dir) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_move(each, work_dir) for each in value)
    if isinstance(value, str):
        return value.replace('work_dirs/demo_student', work_dir)
    return value


def train(cfg: Config, folder: Path) -> Tuple[Runner, List[float], Costs]:
    """Train and judge; the first metric of each validation, and the costs."""
    gc.collect()  # the run before holds gigabytes in circles
    cfg.work_dir = str(folder)
    cfg.experiment_name = f'{folder.name}_{time.time_ns()}'
    costs = Costs(cfg.randomness.seed)
    hook = StageHook(time.perf_counter())
    runner = Runner.from_cfg(cfg)
    runner.register_hook(hook)
    runner.train()
    return runner, [metric_of(stage.metrics) for stage in hook.stages], costs


def metric_of(metrics: Dict[str, float]) -> float:
    """What a step shows of a validation: accuracy or AP50."""
    if 'accuracy/top1' in metrics:
        return metrics['accuracy/top1'] / 100
    return metrics.get('coco/bbox_mAP_50', 0.)  # none where none is found


def sizes(runner: Runner) -> Tuple[int, int]:
    """Images to learn from and to judge on."""
    return (len(runner.train_dataloader.dataset),
            len(runner.val_dataloader.dataset))
