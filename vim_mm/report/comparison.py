# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A fused task and its baselines, each an ordinary config."""

import os.path as osp
import resource
import time
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor

from vim_mm.features.cache import unwrap


@dataclass
class Variant:
    """One trained config, evaluated once or twice.

    Attributes:
        methods (tuple[str]): Its name in reports: after the head's warm-up,
            and after training if it goes on to train.
        cfg (Config): The whole config.
    """
    methods: Tuple[str, ...]
    cfg: Config


@dataclass
class Stage:
    """Results of a variant at one validation.

    Attributes:
        metrics (dict[str, float]): Metrics on the validation set.
        seconds (float): Wall time until then, everything included.
        peak_mb (float): Peak memory until then, of the device if there is
            one, else of the process.
    """
    metrics: Dict[str, float]
    seconds: float
    peak_mb: float


@dataclass
class VariantResult:
    """Results of one variant.

    Attributes:
        stages (dict[str, Stage]): By method.
        n_train (int): Images it learned from.
        n_test (int): Images behind the metrics.
        gates (dict): Slot name to module name to weight.
    """
    stages: Dict[str, Stage]
    n_train: int
    n_test: int
    gates: Dict[str, Dict[str, float]] = field(default_factory=dict)


class StageHook(Hook):
    """Record metrics and costs at every validation.

    Args:
        start (float): ``time.perf_counter()`` when the variant began.
    """

    priority = 'VERY_LOW'

    def __init__(self, start: float) -> None:
        self.start = start
        self.stages: List[Stage] = []

    def after_val_epoch(self,
                        runner: Runner,
                        metrics: Optional[Dict[str, float]] = None) -> None:
        """Add a stage."""
        self.stages.append(
            Stage({k: float(v) for k, v in metrics.items()},
                  round(time.perf_counter() - self.start, 1),
                  round(peak_memory_mb(), 1)))


class SameHeadHook(Hook):
    """Let neck and head start alike in all variants.

    What is drawn before the head differs with the modules, and heads learned
    from few images depend on where they start more than methods differ.

    Args:
        start (dict[str, Tensor]): Where the first variant's neck and head
            started; filled by it, and given to all others.
    """

    # before WarmHeadHook
    priority = 'VERY_HIGH'

    def __init__(self, start: Dict[str, Tensor]) -> None:
        self.start = start

    def before_train(self, runner: Runner) -> None:
        """Record or set the values."""
        model = unwrap(runner.model)
        if not self.start:
            self.start.update(deepcopy(_outside_backbone(model)))
        model.load_state_dict(self.start, strict=False)


def _outside_backbone(model: BaseModel) -> Dict[str, Tensor]:
    return {
        key: value
        for key, value in model.state_dict().items()
        if not key.startswith('backbone.')
    }


def variants(cfg: Config) -> List[Variant]:
    """The baselines of a fused downstream config, and the config itself.

    All warm the same head from the same values on cached features with the
    same settings. Fused
    ones then learn gates and head together; for as many epochs more the other
    heads learn on cached features, so that none has seen the few images
    more often than another.

    Args:
        cfg (Config): Has a fusion that learns in its ``ViMBackbone``, and
            ``ScoreGatesHook`` and ``WarmHeadHook`` among its hooks.

    Returns:
        list[Variant]: Frozen trunk; each single module; the paper's Ens-MoE,
        whose gates start uniform, before and after training; the config's own
        fusion, which starts from scores, likewise.
    """
    cfg = deepcopy(cfg)
    # all are evaluated on the test images, and none is chosen by them
    cfg.val_cfg = dict(type='ValLoop')
    cfg.val_dataloader = cfg.test_dataloader
    cfg.val_evaluator = cfg.test_evaluator
    _warm_up(cfg).evaluate = True
    result = [Variant(('frozen trunk', ), _unfused(cfg, []))]
    for name in cfg.model.backbone.modules:
        result.append(Variant((f'single: {name}', ), _unfused(cfg, [name])))
    uniform = deepcopy(cfg)
    uniform.custom_hooks = _without_gates(cfg)
    fusion = dict(type='vim_mm.EnsMoE')
    if 'tasks' in cfg.model.backbone.fusion:
        fusion['tasks'] = cfg.model.backbone.fusion.tasks
    uniform.model.backbone.fusion = fusion
    return result + [
        Variant(('uniform gates', 'Ens-MoE, trained from uniform'), uniform),
        Variant(('score-started gates', 'trained from scores'), cfg),
    ]


def _without_gates(cfg: Config) -> List[dict]:
    """The hooks, except those that start gates."""
    return [
        h for h in cfg.custom_hooks if h['type'].split('.')[-1] not in
        ('ScoreGatesHook', 'HoldOutGatesHook', 'BetterGatesHook')
    ]


def _warm_up(cfg: Config) -> dict:
    return next(
        h for h in cfg.custom_hooks if h['type'].endswith('WarmHeadHook'))


def _unfused(cfg: Config, modules: List[str]) -> Config:
    cfg = deepcopy(cfg)
    cfg.model.backbone.modules = modules
    cfg.model.backbone.fusion = None
    cfg.custom_hooks = _without_gates(cfg)
    _warm_up(cfg).epochs += cfg.train_cfg.max_epochs
    cfg.train_cfg.max_epochs = 0
    cfg.param_scheduler = None
    return cfg


def run_variant(variant: Variant, work_dir: str,
                head: Dict[str, Tensor]) -> Tuple[VariantResult, Runner]:
    """Train one variant and evaluate it.

    Args:
        variant (Variant): The config to run; its ``WarmHeadHook`` evaluates.
        work_dir (str): Folder for its logs and checkpoints.
        head (dict[str, Tensor]): Where heads start, see
            :class:`SameHeadHook`; empty for the first variant.

    Returns:
        tuple[VariantResult, Runner]: Metrics, costs and gates, and the runner
        with the trained model.
    """
    # a runner writes its config several times; formatting takes a second
    cfg = Config(
        variant.cfg.to_dict(),
        filename=variant.cfg.filename,
        format_python_code=False)
    slug = ''.join(c if c.isalnum() else '-' for c in variant.methods[-1])
    cfg.work_dir = osp.join(work_dir, slug)
    cfg.experiment_name = f'{Path(work_dir).name}_{slug}_{time.time_ns()}'
    reset_peak_memory()
    recorder = StageHook(time.perf_counter())
    runner = Runner.from_cfg(cfg)
    runner.register_hook(recorder)
    runner.register_hook(SameHeadHook(head))
    runner.train()
    result = VariantResult(
        stages=dict(zip(variant.methods, recorder.stages, strict=True)),
        n_train=len(runner.train_dataloader.dataset),
        n_test=len(runner.val_dataloader.dataset),
        gates=unwrap(runner.model).backbone.gates())
    return result, runner


def reset_peak_memory() -> None:
    """Start a new peak, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path('/proc/self/clear_refs').write_text('5')
    except OSError:
        pass  # not Linux, or not allowed: the peak is that of the process


def peak_memory_mb() -> float:
    """Peak memory since the last reset, in MB: the device's, or resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        status = Path('/proc/self/status').read_text()
        return int(status.split('VmHWM:')[1].split()[0]) / 2**10
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
