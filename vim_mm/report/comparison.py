# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Variants of a config, each trained and evaluated."""

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

from vim_mm.engine.model_parts import shown_gates
from vim_mm.models.backbones import ViMBackbone
from vim_mm.models.backbones.trunk import build_trunk
from vim_mm.utils.wrappers import unwrap
from .steps import Gates, slug
from .variants import Variant

#: What runs need.
LIBRARIES = ('mmdet.models', 'mmseg.models', 'mmpretrain.models',
             'mmdet.datasets', 'vim_mm.models', 'vim_mm.engine.hooks')


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
    gates: Gates = field(default_factory=dict)


class StageHook(Hook):
    """Record metrics and costs at every validation.

    Args:
        start (float): ``time.perf_counter()`` when the variant began.
        waits_for (str, optional): The metric that is read afterwards, so
            that a wrong name is told before training.
    """

    priority = 'VERY_LOW'

    def __init__(self, start: float, waits_for: Optional[str] = None) -> None:
        self.start, self.waits_for = start, waits_for
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


class TrunkHook(Hook):
    """Let a plain backbone start from the weights of a trunk.

    They are read as a frozen trunk reads them, so that both start alike.

    Args:
        trunk (dict): Config of the trunk, with its weights.
    """

    priority = 'VERY_HIGH'

    def __init__(self, trunk: dict) -> None:
        self.trunk = trunk

    def before_train(self, runner: Runner) -> None:
        """Set the weights."""
        state = build_trunk(self.trunk).state_dict()
        unwrap(runner.model).backbone.load_state_dict(state)


def run_variant(variant: Variant,
                work_dir: str,
                head: Dict[str, Tensor],
                metric: Optional[str] = None) -> Tuple[VariantResult, Runner]:
    """Train one variant and evaluate it.

    Args:
        variant (Variant): The config to run; its ``WarmHeadHook`` evaluates.
        work_dir (str): Folder for its logs and checkpoints.
        head (dict[str, Tensor]): Where heads start, see
            :class:`SameHeadHook`; empty for the first variant.
        metric (str, optional): The metric that is read afterwards.

    Returns:
        tuple[VariantResult, Runner]: Metrics, costs and gates, and the runner
        with the trained model.
    """
    # a runner writes its config several times; formatting takes a second
    cfg = Config(
        variant.cfg.to_dict(),
        filename=variant.cfg.filename,
        format_python_code=False)
    name = slug(variant.methods[-1])
    cfg.work_dir = osp.join(work_dir, name)
    cfg.experiment_name = f'{Path(work_dir).name}_{name}_{time.time_ns()}'
    reset_peak_memory()
    recorder = StageHook(time.perf_counter(), metric)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(recorder)
    if variant.trunk is not None:
        runner.register_hook(TrunkHook(variant.trunk))
    runner.register_hook(SameHeadHook(head))
    runner.train()
    if not recorder.stages:  # a schedule of no epoch
        runner.val()
    result = VariantResult(
        stages=dict(zip(variant.methods, recorder.stages, strict=True)),
        n_train=len(runner.train_dataloader.dataset),
        n_test=len(runner.val_dataloader.dataset),
        gates=_gates(unwrap(runner.model)))
    return result, runner


def _gates(model: BaseModel) -> Gates:
    """The weights of what a model fuses, empty if it fuses nothing."""
    if not isinstance(model.backbone, ViMBackbone):
        return {}
    return shown_gates(model)


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
