# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Which modules of a zoo help a task: scored before any training."""

import math
import time
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple, Union

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed
from torch import Tensor
from torch.utils.data import DataLoader

from vim_mm.engine.model_parts import extra_tokens
from vim_mm.engine.module_trials import (HEAD_OPTIMIZER, NOTHING_HELPS, Choice,
                                         ModuleTrials, tells_apart)
from vim_mm.evaluation.strengths import Gain, Weights, plain_settings
from vim_mm.evaluation.transferability import h_score, library, log_me, n_leep
from vim_mm.evaluation.unlike_halves import DEALS
from vim_mm.features.module_rows import FUSED, TRUNK, ModuleFeatures
from vim_mm.features.rows import thinned
from vim_mm.models.multitask.single_task import config_tasks
from vim_mm.models.necks import ViMFusionNeck
from vim_mm.utils.config import read_config, type_name
from vim_mm.utils.data import check_data
from vim_mm.utils.quiet_logs import quiet
from vim_mm.utils.seeds import seeded
from .fitting import fitting_model

#: Rows that the published scores see at most: a mixture is slow on more.
MAX_PUBLISHED_ROWS = 1500


@dataclass
class Ranking:
    """Scores of a zoo's modules for one task.

    Attributes:
        scores (dict): Module, :data:`TRUNK` or :data:`UNIFORM`, and with
            ``fuse`` :data:`FUSED`, to name of the score to value; the best by
            ``ours`` first.
        skipped (dict[str, str]): Modules that were not scored, and why.
        num_pictures (int): Images behind the scores.
        num_rows (int): Rows of features: images, or patches of them.
        num_classes (int): Classes of the rows.
        noise (dict[str, float]): By what ``ours`` of each may differ from that
            of the bare trunk by chance, a standard error over images.
        verdict (str): What to use, in words.
        weights (dict[str, float]): By module, of :data:`FUSED`.
        passes (float): Passes of the images through the trunk.
        seconds (float): Wall time.
    """
    scores: Dict[str, Dict[str, float]]
    skipped: Dict[str, str]
    num_pictures: int
    num_rows: int
    num_classes: int
    noise: Dict[str, float] = field(default_factory=dict)
    verdict: str = ''
    weights: Dict[str, float] = field(default_factory=dict)
    passes: float = 0.
    seconds: float = 0.


def rank_modules(cfg: Union[str, Config],
                 zoo: str,
                 max_pictures: int = 2000,
                 fuse: bool = False,
                 cache: Optional[str] = None) -> Ranking:
    """Score every module of a zoo, and the bare trunk, for a config's task.

    One pass over the training images for each, and for all modules at an
    equal share; all see the same augmentation. Nothing is trained but, in
    detection, the task's own head, and nothing is written but the cache.

    Args:
        cfg (str | Config): A downstream config; its modules and fusion are
            ignored.
        zoo (str): Directory of the zoo.
        max_pictures (int): Stop after so many, rounded up to whole batches.
            Defaults to 2000.
        fuse (bool): Whether to look for weights too, as ``ScoreGatesHook``
            does, which takes more passes. Defaults to False.
        cache (str, optional): Folder of scores, see :class:`ModuleTrials`.
            Defaults to None.

    Returns:
        Ranking: Scores and what could not be scored.

    Raises:
        FileNotFoundError: If data or weights of the trunk are missing.
        ValueError: If the model is none of ours, or the images cannot be
            scored.
        ZooError: If no module of the zoo fits.
    """
    start = time.perf_counter()
    cfg = read_config(cfg)
    _check(cfg)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    set_random_seed(0)
    model, skipped = fitting_model(cfg, zoo)
    with quiet():  # it tells of each parameter
        model.init_weights()  # of the task's own head
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    with seeded(0):
        features = _features(cfg, model, loader, max_pictures)
    trials = ModuleTrials(
        features,
        _hook(cfg, 'ScoreGatesHook').get('deals', DEALS),
        _hook(cfg, 'WarmHeadHook').get('optimizer', HEAD_OPTIMIZER),
        cache=cache)
    num_classes = _check_labels(features.labels)
    choice = trials.choose() if fuse else None
    scores, gains = _table(trials, choice, skipped)
    order = sorted(scores, key=lambda name: -scores[name]['ours'])
    return Ranking(
        scores={name: scores[name]
                for name in order},
        skipped=skipped,
        num_pictures=features.num_pictures,
        num_rows=len(features.labels),
        num_classes=num_classes,
        noise={name: gain.noise
               for name, gain in gains.items()},
        verdict=_verdict(gains) if choice is None else str(choice),
        weights={} if choice is None else choice.weights,
        passes=round(features.passes, 1),
        seconds=round(time.perf_counter() - start, 1))


def _check_labels(labels: Tensor) -> int:
    """The number of classes, of which there must be two."""
    num = labels.shape[1] if labels.dim() > 1 else len(labels.unique())
    if num < 2:
        raise ValueError(f'All {len(labels)} rows of the training images have '
                         'one class, so no feature can be better than '
                         'another; rank on data with two classes or more.')
    return num


def _table(trials: ModuleTrials, choice: Optional[Choice],
           skipped: Dict[str, str]) -> Tuple[Dict[str, dict], dict]:
    """Scores of every setting, and what it gains over the bare trunk.

    Args:
        trials (ModuleTrials): Of the modules.
        choice (Choice, optional): What was found for a fusion.
        skipped (dict[str, str]): Gets what cannot be scored, and why.
    """
    settings = {
        trials.named(weights): weights
        for weights in plain_settings(len(trials.names), trials.most)
    }
    if choice is not None and any(choice.weights.values()):
        settings[FUSED] = tuple(choice.weights.values())
    scores: Dict[str, dict] = {}
    for name, weights in settings.items():
        if weights not in trials.rows:  # one pass for all scores
            trials.rows[weights] = trials.features.rows(weights)
        x = trials.rows[weights]
        if tells_apart(x):
            scores[name] = dict(
                ours=trials.final(weights),
                **published_scores(x, trials.features.labels))
        elif name == TRUNK:
            raise ValueError(
                'No features could be scored, not even those of the frozen '
                'trunk: they are the same for every image, or not finite. '
                'Check the weights of the trunk.')
        else:
            skipped[name] = 'Its features are the same for every image, or ' \
                'not finite.'
    return scores, {
        name: trials.compare_final(settings[name], settings[TRUNK])
        for name in scores
    }


def _verdict(gains: Dict[str, Gain]) -> str:
    """Which of what was scored to use."""
    helping = [name for name, gain in gains.items() if gain.is_real]
    if not helping:
        return NOTHING_HELPS
    best = max(helping, key=lambda name: gains[name].value)
    gain = gains[best]
    return (f'{", ".join(helping)}: better than the frozen trunk by more than '
            f'noise, {best} most ({gain.value:+.3f}, noise {gain.noise:.3f})')


def _features(cfg: Config, model: BaseModel, loader: DataLoader,
              max_pictures: int) -> ModuleFeatures:
    """Features of all modules that a model holds, as a fusion weighs them."""
    backbone, hook = model.backbone, _hook(cfg, 'ScoreGatesHook')
    names = backbone.bank.names
    fusion = dict(type='vim_mm.LinearMoE', learn=False)
    if len({backbone.bank.is_beside(name) for name in names}) == 1:
        backbone.set_fusion(fusion)
        part, run = backbone, backbone
    else:  # in passes of their own, as streams
        part = ViMFusionNeck(
            backbone.out_channels,
            scales=[1] * len(backbone.out_channels),
            modules=names,
            fusion=fusion).to(get_device())

        def run(inputs: Tensor) -> List[Tensor]:
            return part.fuse(backbone(inputs))

    def weigh(weights: Weights) -> None:
        part.fusion.set_weights(part.task, torch.tensor(weights))

    return ModuleFeatures(
        model, loader, names, run, weigh, len(names),
        extra_tokens(model, hook.get('num_extra_tokens')), max_pictures)


def published_scores(x: Tensor, labels: Tensor) -> Dict[str, float]:
    """The scores of others, NaN where features are too large to compute them;
    see ``docs/ranking.md``.
    """
    few, found = thinned(len(x), MAX_PUBLISHED_ROWS), {}
    for name, score in dict(
            logme=log_me, nleep=n_leep, hscore=h_score).items():
        try:
            found[name] = score(x[few], labels[few])
        except torch.linalg.LinAlgError:
            found[name] = math.nan
    return found


# -------------------------------------------------------------- model, data


def _check(cfg: Config) -> None:
    backbone = cfg.get('model', {}).get('backbone', {})
    kind = backbone.get('type')
    if not kind or type_name(backbone) != 'ViMBackbone':
        raise ValueError(f'model.backbone of this config is {kind!r}; modules '
                         'plug into a vim_mm.ViMBackbone, so give a config '
                         'that has one.')
    if not cfg.get('train_dataloader'):
        raise ValueError('This config has no train_dataloader, and modules '
                         'are ranked on the images to be learned from.')
    several = config_tasks(cfg)
    if several:
        raise ValueError(f'This config is of the tasks {several}, and modules '
                         'are ranked for one; give `task_config(cfg, '
                         f"'{several[0]}')`, or a config of one task.")
    check_data(cfg, ('train_dataloader', ))
    for name in ('sklearn', 'scipy'):  # before minutes of features
        library(name)


def _hook(cfg: Config, name: str) -> dict:
    """Settings of a hook of the config, if there is one."""
    return next((hook for hook in cfg.get('custom_hooks') or []
                 if type_name(hook) == name), {})
