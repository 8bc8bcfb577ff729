# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A fused task against its baselines, every one an ordinary config."""

import os.path as osp
import resource
import time
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Tuple

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from vim_mm.engine.feature_cache import unwrap


@dataclass
class Variant:
    """One trained and tested config.

    Attributes:
        method (str): What distinguishes it, for people.
        cfg (Config): The whole config.
    """
    method: str
    cfg: Config


@dataclass
class VariantResult:
    """What came out of one variant.

    Attributes:
        method (str): Name of the variant.
        metrics (dict[str, float]): Metrics on the test set.
        n_train (int): Pictures it learned from.
        n_test (int): Pictures behind the metrics.
        seconds (float): Building, training and testing.
        peak_mb (float): Peak memory, of the device if there is one, else of
            the process.
        gates (dict): Slot name to module name to weight.
        scores (dict[str, float]): Few-shot score of each module, if taken.
        before (dict[str, float]): Metrics of the warmed head alone, if
            ``WarmHeadHook`` evaluated it.
    """
    method: str
    metrics: Dict[str, float]
    n_train: int
    n_test: int
    seconds: float
    peak_mb: float
    gates: Dict[str, Dict[str, float]] = field(default_factory=dict)
    scores: Dict[str, float] = field(default_factory=dict)
    before: Dict[str, float] = field(default_factory=dict)


def variants(cfg: Config) -> List[Variant]:
    """The baselines of a fused downstream config, and itself, cheapest first.

    All warm the same head on cached features with the same settings. Only the
    two trained Ens-MoE go on to learn gates and head together; the one that
    starts uniform, as the paper does, has no warmed head (only standardised
    features), beside which its gates would get no gradient.

    Args:
        cfg (Config): Has an ``EnsMoE`` fusion in its ``ViMBackbone``, and
            ``ScoreGatesHook`` and ``WarmHeadHook`` among its hooks.

    Returns:
        list[Variant]: Frozen trunk, each single module, uniform gates,
        score-started gates, Ens-MoE from uniform, Ens-MoE from scores.
    """
    cfg = deepcopy(cfg)
    # all are judged once, on the test pictures
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    result = [Variant('frozen trunk', _without_training(cfg, []))]
    for name in cfg.model.backbone.modules:
        result.append(Variant(f'single: {name}', _without_training(cfg,
                                                                   [name])))
    uniform = _without_hook(_without_training(cfg), 'ScoreGatesHook')
    joint = _with_cold_head(_without_hook(cfg, 'ScoreGatesHook'))
    return result + [
        Variant('uniform gates', uniform),
        Variant('score-started gates', _without_training(cfg)),
        Variant('Ens-MoE, trained from uniform', joint),
        Variant('Ens-MoE, trained from scores', cfg),
    ]


def _without_hook(cfg: Config, kind: str) -> Config:
    cfg = deepcopy(cfg)
    cfg.custom_hooks = [
        h for h in cfg.custom_hooks if h['type'].split('.')[-1] != kind
    ]
    return cfg


def _with_cold_head(cfg: Config) -> Config:
    cfg = deepcopy(cfg)
    for hook in cfg.custom_hooks:
        if hook['type'].endswith('WarmHeadHook'):
            hook['epochs'] = 0
    return cfg


def _without_training(cfg: Config, modules: List[str] = None) -> Config:
    cfg = deepcopy(cfg)
    cfg.train_cfg.max_epochs = 0
    cfg.param_scheduler = None
    if modules is not None:
        cfg = _without_hook(cfg, 'ScoreGatesHook')
        cfg.model.backbone.modules = modules
        cfg.model.backbone.fusion = None
    return cfg


def run_variant(variant: Variant,
                work_dir: str) -> Tuple[VariantResult, Runner]:
    """Train one variant, and test it unless its run ended with validation.

    Args:
        variant (Variant): The config to run.
        work_dir (str): Folder for its logs and checkpoints.

    Returns:
        tuple[VariantResult, Runner]: Metrics, costs, gates and scores, and
        the runner with the trained model.
    """
    cfg = deepcopy(variant.cfg)
    slug = ''.join(c if c.isalnum() else '-' for c in variant.method)
    cfg.work_dir = osp.join(work_dir, slug)
    cfg.experiment_name = f'{Path(work_dir).name}_{slug}_{time.time_ns()}'
    reset_peak_memory()
    start = time.perf_counter()
    runner = Runner.from_cfg(cfg)
    runner.train()
    before, metrics = validations(runner)
    judged = runner.val_dataloader if metrics else runner.test_dataloader
    metrics = metrics or runner.test()
    seconds = time.perf_counter() - start
    info = runner.message_hub.runtime_info
    return VariantResult(
        method=variant.method,
        metrics={k: float(v)
                 for k, v in metrics.items()},
        n_train=len(runner.train_dataloader.dataset),
        n_test=len(judged.dataset),
        seconds=round(seconds, 1),
        peak_mb=round(peak_memory_mb(), 1),
        gates=unwrap(runner.model).backbone.gates(),
        scores=dict(info.get('module_scores', {})),
        before=before), runner


def validations(runner: Runner) -> Tuple[Dict[str, float], ...]:
    """First and last values of a run's validation metrics.

    Returns:
        tuple[dict, dict]: The last one is empty when fewer than two
        validations ran.
    """
    first, last = {}, {}
    for key, buffer in runner.message_hub.log_scalars.items():
        if key.startswith('val/') and not key.endswith('time'):
            values = buffer.data[0]
            first[key[len('val/'):]] = float(values[0])
            if len(values) > 1:
                last[key[len('val/'):]] = float(values[-1])
    return first, last


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
