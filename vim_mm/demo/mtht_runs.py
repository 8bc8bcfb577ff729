# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What the steps of ``tools/demo.py mtht`` train, evaluate and draw."""

import time
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

from mmengine.config import Config
from mmengine.runner import CheckpointLoader, Runner, find_latest_checkpoint
from torch import Tensor

from vim_mm.apis.experts import moe_card
from vim_mm.models.moe import MoEFile, extract, read_moe, save_moe
from vim_mm.models.moe.load_moe import build_from
from vim_mm.models.multitask.single_task import task_state
from vim_mm.models.tasks import select_task
from vim_mm.report import Chart, Gallery, Row
from vim_mm.report.comparison import (Stage, StageHook, peak_memory_mb,
                                      reset_peak_memory)
from vim_mm.report.routing import (draw_information, draw_usage,
                                   read_information)
from vim_mm.utils.wrappers import unwrap
from .common import CONFIGS, Found, ask, load


@dataclass(frozen=True)
class Task:
    """What a task of the demo is judged by.

    Attributes:
        name (str): For the rows.
        key (str): Key in its evaluator's results.
        metric (str): Name shown.
        scale (float): What the evaluator's value is multiplied by.
        config (str): Its ordinary config.
    """
    name: str
    key: str
    metric: str
    scale: float
    config: str


TASKS: Dict[str, Task] = dict(
    cls=Task('digit classes (cls)', 'accuracy/top1', 'accuracy', .01,
             'demo_single/digits_cls'),
    det=Task('tree crowns (det)', 'coco/bbox_mAP_50', 'AP50', 1.,
             'demo_single/tree-crowns_det'),
    seg=Task('digit masks (seg)', 'mIoU', 'mIoU', .01,
             'demo_single/digits_seg'),
    solar=Task('solar cells (cls)', 'accuracy/top1', 'accuracy', .01,
               'demo_adapt-solar-cells'))
JOINT = [task for task in TASKS if task != 'solar']

#: ways to adapt, by name; see vim_mm.load_moe
WAYS: Dict[str, dict] = {
    'routers':
    dict(train='routers'),
    'routers + 1 new expert':
    dict(train=['routers', 'experts'], experts=dict(num=1, select='new')),
    'routers + most used expert':
    dict(train=['routers', 'experts'], experts=dict(num=1, select='most')),
    'everything':
    dict(train='all'),
}


def trunk_file(work_dir: Path) -> Path:
    """The moe file of the jointly trained trunk."""
    return work_dir / 'joint' / 'trunk.safetensors'


# -------------------------------------------------------------------- steps


def joint(cfg: Config, work_dir: Path, seed: int) -> Found:
    """Train three tasks in one model, and write its trunk."""
    runner, stages = _train(cfg)
    model = unwrap(runner.model)
    rows = []
    for method, stage in (('dense start, warmed head', stages[0]),
                          ('learned together', stages[-1])):
        rows += _rows('joint', JOINT, method, runner, stage, seed)
    meta = runner.train_dataloader.dataset.metainfo
    save_moe(model.backbone, cfg.model.backbone, trunk_file(work_dir),
             model.routing.usage(), moe_card(cfg, JOINT, meta))
    return Found(
        rows, _galleries(runner, JOINT, work_dir, 'joint',
                         'learned together'),
        _routing_charts(model.routing.usage(), work_dir))


def extraction(cfg: Config, work_dir: Path, seed: int) -> Found:
    """Take each task out, with all experts and with those it uses."""
    file = read_moe(trunk_file(work_dir))
    rows = []
    for task in JOINT:
        for threshold in (None, 3):
            name, kept = 'whole trunk', 1.
            part = Config.fromfile(CONFIGS / 'mtht' /
                                   f'{TASKS[task].config}.py')
            path = trunk_file(work_dir)
            if threshold:
                path = work_dir / 'extraction' / f'{task}.safetensors'
                kept = _write_part(file, task, threshold, path) \
                    / file.num_params
                name = f'own part, {kept:.0%} of the parameters'
            part.model.backbone = dict(
                type='vim_mm.load_moe', checkpoint=str(path), task=task)
            part.work_dir = str(work_dir / 'extraction' / task)
            rows.append(_evaluate(part, task, name, work_dir, seed))
    return Found(rows)


def _write_part(file: MoEFile, task: str, threshold: float, path: Path) -> int:
    """Write one task's part of a trunk; return its number of parameters."""
    trunk = build_from(file)
    usage = extract(trunk, [task], file.usage, threshold)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_moe(trunk, file.backbone, path, usage, file.card)
    return read_moe(path).num_params


def _evaluate(cfg: Config, task: str, method: str, work_dir: Path,
              seed: int) -> Row:
    """Evaluate an ordinary model with the head of the joint one."""
    reset_peak_memory()
    start = time.perf_counter()
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    runner.model.load_state_dict(
        {
            key: value
            for key, value in task_state(_last(work_dir), task).items()
            if not key.startswith('backbone.')
        },
        strict=False)
    metrics = runner.val()
    stage = Stage({
        f'{task}/{k}': v
        for k, v in metrics.items()
    }, round(time.perf_counter() - start, 1), round(peak_memory_mb(), 1))
    return _row('extraction', task, method, stage, 0,
                len(runner.val_dataloader.dataset), seed)


def adaptation(cfg: Config, work_dir: Path, seed: int) -> Found:
    """Let a new task learn, one way after the other."""
    rows = []
    for way, settings in WAYS.items():
        part = deepcopy(cfg)
        part.model.backbone.update(deepcopy(settings))
        part.work_dir = f'{cfg.work_dir}/{"".join(filter(str.isalnum, way))}'
        runner, stages = _train(part)
        learned = sum(p.numel() for p in runner.model.parameters()
                      if p.requires_grad) / 1e6
        named = [('a new head alone', stages[0]),
                 (f'{way} ({learned:.2f} M learn)', stages[-1])]
        # all start from the same warmed head
        for method, stage in named[bool(rows):]:
            stage.metrics = {f'solar/{k}': v for k, v in stage.metrics.items()}
            rows.append(
                _row('adaptation', 'solar', method, stage,
                     len(runner.train_dataloader.dataset),
                     len(runner.val_dataloader.dataset), seed))
    return Found(rows)


def continual(cfg: Config, work_dir: Path, seed: int) -> Found:
    """Add a task, and judge all of them before and after."""
    # the last of a task is the trained one
    before = {row.task: row for row in load('joint', work_dir).rows}
    runner, stages = _train(cfg)
    rows = _rows('continual', list(TASKS), 'after', runner, stages[-1], seed)
    both = []
    for row in rows:
        if row.task in before:
            both.append(
                replace(
                    before[row.task], step='continual', method='before'))
        both.append(row)
    return Found(
        both, _galleries(runner, ['solar'], work_dir, 'continual', 'after'))


#: by step, what it does with its config, and what it gives to the report
RUNS = dict(
    joint=joint,
    extraction=extraction,
    adaptation=adaptation,
    continual=continual)

# -------------------------------------------------------------------- parts


def _train(cfg: Config) -> Tuple[Runner, List[Stage]]:
    """Train a config; what its evaluations found, and what it took."""
    cfg = Config(
        cfg.to_dict(), filename=cfg.filename, format_python_code=False)
    cfg.experiment_name = f'{Path(cfg.work_dir).name}_{time.time_ns()}'
    reset_peak_memory()
    recorder = StageHook(time.perf_counter())
    runner = Runner.from_cfg(cfg)
    runner.register_hook(recorder)
    runner.train()
    return runner, recorder.stages


def _last(work_dir: Path) -> Dict[str, Tensor]:
    """The joint model's tensors."""
    path = find_latest_checkpoint(str(work_dir / 'joint'))
    return CheckpointLoader.load_checkpoint(path, 'cpu')['state_dict']


def _rows(step: str, tasks: Sequence[str], method: str, runner: Runner,
          stage: Stage, seed: int) -> List[Row]:
    loaders = runner.train_loop.dataloader.loaders
    return [
        _row(step, task, method, stage,
             len(loaders[task].dataset) if task in loaders else 0,
             len(runner.val_dataloader.of(task).dataset), seed)
        for task in tasks
    ]


def _row(step: str, task: str, method: str, stage: Stage, n_train: int,
         n_test: int, seed: int) -> Row:
    one = TASKS[task]
    # mmdet has no metric where nothing at all was found
    value = float(stage.metrics.get(f'{task}/{one.key}', 0.))
    return Row(step, one.name, method, one.metric, round(value * one.scale, 4),
               n_train, n_test, stage.seconds, stage.peak_mb, seed)


def _galleries(runner: Runner, tasks: Sequence[str], work_dir: Path,
               step: str, method: str) -> List[Gallery]:
    galleries = []
    for task in tasks:
        select_task(runner.model, task)
        galleries.append(
            ask(
                Gallery(TASKS[task].name), runner, work_dir,
                f'{step}/{task}', method,
                runner.val_dataloader.of(task)))
    return galleries


def _routing_charts(usage: dict, work_dir: Path) -> List[Chart]:
    folder = work_dir / 'joint' / 'pictures'
    folder.mkdir(parents=True, exist_ok=True)
    draw_usage(usage, folder / 'usage.png')
    draw_information(
        read_information(work_dir / 'joint'), folder / 'information.png',
        len(JOINT))
    return [
        Chart('joint/pictures/usage.png',
              'How often each task uses each expert, layer by layer.'),
        Chart(
            'joint/pictures/information.png',
            'Mutual information I(T;E) of tasks and experts while the trunk '
            'learns.')
    ]
