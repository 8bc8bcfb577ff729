# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Which modules of a zoo help a task: scored before any training."""

import time
from copy import deepcopy
from dataclasses import dataclass
from typing import Dict, List, Tuple

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.runner import Runner, set_random_seed
from torch import Tensor, nn

from vim_mm.engine.model_parts import extra_tokens
from vim_mm.evaluation.ridge import held_out_scores
from vim_mm.evaluation.transferability import h_score, library, log_me, n_leep
from vim_mm.evaluation.unlike_halves import DEALS
from vim_mm.features.module_rows import TRUNK, module_rows
from vim_mm.features.rows import thinned
from vim_mm.models import build_model
from vim_mm.models.multitask.single_task import config_tasks
from vim_mm.utils.config import type_name
from vim_mm.utils.data import check_data
from vim_mm.zoo import Zoo, ZooError

#: Settings of what weighs modules, and a backbone without any.
_FUSED = ('fusion', 'task', 'learn_tasks')
_UNFUSED = dict(new_module=None, **dict.fromkeys(_FUSED))
#: Rows that the published scores see at most: a mixture is slow on more.
MAX_PUBLISHED_ROWS = 5000


@dataclass
class Ranking:
    """Scores of a zoo's modules for one task.

    Attributes:
        scores (dict): Module, or :data:`TRUNK`, to name of the score to
            value; the best by ``ours`` first.
        skipped (dict[str, str]): Modules that were not scored, and why.
        num_pictures (int): Images behind the scores.
        num_rows (int): Rows of features: images, or patches of them.
        num_classes (int): Classes of the rows.
        seconds (float): Wall time.
    """
    scores: Dict[str, Dict[str, float]]
    skipped: Dict[str, str]
    num_pictures: int
    num_rows: int
    num_classes: int
    seconds: float = 0.


def rank_modules(cfg: Config,
                 zoo: str,
                 max_pictures: int = 2000) -> Ranking:
    """Score every module of a zoo, and the bare trunk, for a config's task.

    One pass over the training images, each batch run once with every
    module alone: all see the same augmentation. Nothing is trained or
    written.

    Args:
        cfg (Config): A downstream config; its modules and fusion are ignored.
        zoo (str): Directory of the zoo.
        max_pictures (int): Stop after so many, rounded up to whole batches.
            Defaults to 2000.

    Returns:
        Ranking: Scores and what could not be scored.

    Raises:
        FileNotFoundError: If data or weights of the trunk are missing.
        ValueError: If the model is none of ours, or the images cannot be
            scored.
        ZooError: If no module of the zoo fits.
    """
    start = time.perf_counter()
    _check(cfg)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    set_random_seed(0)
    model, skipped = fitting_model(cfg, zoo)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    hook = _score_hook(cfg)
    rows = module_rows(model, loader, model.backbone.bank.names,
                       extra_tokens(model, hook.get('num_extra_tokens')),
                       max_pictures)
    _, labels, pictures = rows[TRUNK]
    num_classes = len(labels.unique())
    if num_classes < 2:
        raise ValueError(f'All {len(labels)} rows of the training images '
                         'have one class, so no feature can be better than '
                         'another; rank on data with two classes or more.')
    for name, (x, *_) in list(rows.items()):
        if not torch.isfinite(x).all() or (x == x[0]).all():
            skipped[name] = 'Its features are the same for every image, ' \
                'or not finite.'
            del rows[name]
    if not rows:
        raise ValueError('No features could be scored, not even those of the '
                         'frozen trunk: they are the same for every image, '
                         'or not finite. Check the weights of the trunk.')
    ours = held_out_scores(rows, hook.get('deals', DEALS))
    scores = {
        name: dict(ours=ours[name], **published_scores(x, labels))
        for name, (x, *_) in rows.items()
    }
    order = sorted(scores, key=lambda name: -scores[name]['ours'])
    return Ranking({name: scores[name]
                    for name in order}, skipped, len(pictures.unique()),
                   len(labels), num_classes,
                   round(time.perf_counter() - start, 1))


def published_scores(x: Tensor, labels: Tensor) -> Dict[str, float]:
    """The scores of others; see ``docs/ranking.md``."""
    few = thinned(len(x), MAX_PUBLISHED_ROWS)
    return dict(
        logme=log_me(x[few], labels[few]),
        nleep=n_leep(x[few], labels[few]),
        hscore=h_score(x[few], labels[few]))


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


def _score_hook(cfg: Config) -> dict:
    """Settings of the hook that would start the gates, if there is one."""
    return next((hook for hook in cfg.get('custom_hooks') or []
                 if type_name(hook) == 'ScoreGatesHook'), {})


def fitting_model(cfg: Config,
                  zoo: str) -> Tuple[BaseModel, Dict[str, str]]:
    """The config's model with all modules of a zoo that fit its trunk.

    Args:
        cfg (Config): The whole config.
        zoo (str): Directory of the zoo.

    Returns:
        tuple[BaseModel, dict[str, str]]: The model, and the modules that do
        not fit, each with the reason.

    Raises:
        ZooError: If none fits.
    """
    fits, skipped = Zoo(zoo).names(), {}
    model = unfused_model(cfg, zoo, [])
    for name in fits:
        try:
            model.backbone.load_modules(zoo, [name])
        except ZooError as error:
            skipped[name] = str(error)
        except ValueError:
            pass  # a backbone that is built for it may have its slots
    fits = [name for name in fits if name not in skipped]
    try:
        _plug(model, cfg, zoo, fits)
    except ValueError:
        misfits = _misfits(model, cfg, zoo, fits)
        fits = [name for name in fits if name not in misfits]
        skipped.update(misfits)
        _plug(model, cfg, zoo, fits)
    if not fits:
        reasons = ''.join(f'\n  {name}: {why}'
                          for name, why in skipped.items())
        raise ZooError(f'No module of the zoo {zoo!r} fits this config; it '
                       f'holds {len(skipped)}.{reasons}')
    return model, skipped


def _misfits(model: BaseModel, cfg: Config, zoo: str,
             names: List[str]) -> Dict[str, str]:
    """Modules that the backbone refuses by themselves, with its reason."""
    reasons = {}
    for name in names:
        try:
            _plug(model, cfg, zoo, [name])
        except ValueError as error:
            reasons[name] = str(error)
    return reasons


def unfused_model(cfg: Config, zoo: str, modules: List[str]) -> BaseModel:
    """The config's model with these modules instead of its own, no fusion.

    Its neck and head are those of one stream, whatever the modules: only the
    backbone is to be run.
    """
    cfg = deepcopy(cfg)
    neck = cfg.model.get('neck') or []
    for part in neck if isinstance(neck, list) else [neck]:
        if type_name(part) == 'ViMFusionNeck':
            for key in ('modules', *_FUSED):
                part.pop(key, None)
    model = build_model(cfg, zoo=zoo, modules=[], **_UNFUSED)
    if modules:
        _plug(model, cfg, zoo, modules)
    return model.to(get_device()).eval()


def _plug(model: BaseModel, cfg: Config, zoo: str,
          modules: List[str]) -> None:
    """Let a backbone with these modules take the place of a model's."""
    backbone = deepcopy(cfg.model.backbone)
    backbone.update(zoo=zoo, modules=modules, **_UNFUSED)
    model.backbone = nn.Identity()  # two trunks may be too large
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        model.backbone = MODELS.build(backbone).to(get_device()).eval()
