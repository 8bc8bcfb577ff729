# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A fused task and its baselines, each an ordinary config."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Iterator, List, Optional, Sequence, Tuple

from mmengine.config import Config, ConfigDict

from vim_mm.features.module_rows import TRUNK
from vim_mm.models.backbones.configs import without_weights
from vim_mm.models.multitask.single_task import config_tasks
from vim_mm.utils.config import type_name
from .steps import SINGLE
from .verdicts import FULL

RECOMMENDED, CONFIGURED, UNIFORM = 'recommended', 'as configured', 'uniform'
#: What docs/fusion.md recommends where a config does not say.
FUSION = dict(type='vim_mm.LinearMoE')
START = dict(type='vim_mm.ScoreGatesHook')
END = dict(type='vim_mm.BetterGatesHook')
#: Hooks that set the weights of a fusion before training.
STARTS = ('ScoreGatesHook', 'HoldOutGatesHook')
#: These, and those that choose between weights afterwards.
CHOOSING = (*STARTS, 'BetterGatesHook')
#: Hooks that need weights to work on.
WEIGHING = (*CHOOSING, 'GateLogHook')
#: Hooks that write a zoo, or choose by the images that all are judged on.
_LEFT_OUT = ('ModuleToZooHook', 'EarlyStoppingHook')


@dataclass
class Variant:
    """One trained config, evaluated once or twice.

    Attributes:
        methods (tuple[str]): Its name in reports: after the head's warm-up,
            and after training if it goes on to train.
        cfg (Config): The whole config.
        trunk (dict, optional): Config of the trunk whose weights a plain
            backbone starts from. Defaults to None.
    """
    methods: Tuple[str, ...]
    cfg: Config
    trunk: Optional[dict] = None


# ------------------------------------------------------------ any fused task


def baselines(cfg: Config,
              singles: Optional[Sequence[str]] = None,
              full: bool = False) -> List[Variant]:
    """A fused downstream config, and what it is to be compared with.

    All train with the config's own schedule and hooks, and are evaluated once,
    at the end, on its test images. Where learned gates may be replaced in the
    end, which lets the head learn again, the heads of all do.

    Args:
        cfg (Config): Weighs modules of a zoo, in the trunk or in the neck. It
            is left as it is.
        singles (Sequence[str], optional): Modules that are run alone; all
            when None.
        full (bool): Fine-tune the whole trunk, too. Defaults to False.

    Returns:
        list[Variant]: Frozen trunk; single modules; uniform weights; the
        config, and with other weights those that are recommended, unless its
        own start from scores; full fine-tuning.

    Raises:
        ValueError: If the config weighs no modules, or has no test images.
    """
    fusing_config(cfg)
    names = list(cfg.model.backbone.modules)
    cfg = judged_once(cfg)
    starts = any(type_name(hook) in STARTS for hook in cfg.custom_hooks)
    if not starts or _replaces(cfg):
        for hook in cfg.custom_hooks:
            if type_name(hook) == 'WarmHeadHook':
                hook.again = True
    result = [Variant((TRUNK, ), unfused(cfg, []))]
    for name in names if singles is None else singles:
        result.append(Variant((SINGLE + name, ), unfused(cfg, [name])))
    uniform = refused(cfg, dict(type='vim_mm.FixedFusion'))
    uniform.custom_hooks = without_hooks(uniform, WEIGHING)
    result.append(Variant((UNIFORM, ), uniform))
    if starts:
        result.append(Variant((RECOMMENDED, ), cfg))
    else:
        fused = refused(cfg, FUSION)
        fused.custom_hooks = [
            START, *without_hooks(cfg, CHOOSING), END
        ]
        result += [
            Variant((CONFIGURED, ), cfg),
            Variant((RECOMMENDED, ), fused)
        ]
    if full:
        result.append(_full(cfg))
    return result


def _replaces(cfg: Config) -> bool:
    """Whether learned gates may be replaced in the end."""
    return any(type_name(hook) == type_name(END) for hook in cfg.custom_hooks)


def fusing_config(cfg: Config) -> ConfigDict:
    """The config of what weighs the modules: the backbone, or the neck.

    Raises:
        ValueError: If nothing does.
    """
    backbone = cfg.model.get('backbone') or {}
    if config_tasks(cfg):
        raise ValueError('This config is of several tasks, and one is '
                         'compared at a time; give a config of one task.')
    if 'type' not in backbone or type_name(backbone) != 'ViMBackbone':
        raise ValueError('model.backbone of this config is '
                         f'{backbone.get("type")!r}; modules plug into a '
                         'vim_mm.ViMBackbone, so give a config that has one.')
    weighing = [backbone] if backbone.get('fusion') else [
        neck for neck in _fusion_necks(cfg) if neck.get('modules')
    ]
    if not weighing or not backbone.get('modules'):
        raise ValueError(
            'This config weighs no modules of a zoo, so there is nothing to '
            'compare; name them in `model.backbone.modules`, and set '
            '`model.backbone.fusion`.')
    return weighing[0]


def _fusion_necks(cfg: Config) -> Iterator[ConfigDict]:
    necks = cfg.model.get('neck') or []
    for neck in necks if isinstance(necks, list) else [necks]:
        if type_name(neck) == 'ViMFusionNeck':
            yield neck


def judged_once(cfg: Config) -> Config:
    """A copy that is evaluated once, at its end, on the test images."""
    cfg = deepcopy(cfg)
    if cfg.get('test_dataloader'):
        cfg.val_dataloader = cfg.test_dataloader
        cfg.val_evaluator = cfg.test_evaluator
    if not cfg.get('val_dataloader'):
        raise ValueError('This config has neither a test_dataloader nor a '
                         'val_dataloader, and methods are compared on images '
                         'that none has learned from; give it one.')
    cfg.val_cfg = dict(type='ValLoop')
    length = 'max_iters' if 'max_iters' in cfg.train_cfg else 'max_epochs'
    cfg.train_cfg.pop('dynamic_intervals', None)
    cfg.train_cfg.update(
        val_begin=1, val_interval=max(1, cfg.train_cfg[length]))
    cfg.resume = False
    # a hook that is None is left out
    saving = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    saving.pop('save_best', None)
    cfg.custom_hooks = without_hooks(cfg, _LEFT_OUT)
    for hook in cfg.custom_hooks:
        if type_name(hook) == 'WarmHeadHook':
            hook.evaluate = False
    return cfg


def without_hooks(cfg: Config, names: Sequence[str]) -> List[dict]:
    """The custom hooks, except those of these types."""
    return [
        hook for hook in cfg.get('custom_hooks') or []
        if type_name(hook) not in names
    ]


def refused(cfg: Config, fusion: dict) -> Config:
    """A copy with another fusion, in the same place, of the same tasks."""
    cfg = deepcopy(cfg)
    part = fusing_config(cfg)
    tasks = (part.get('fusion') or {}).get('tasks')
    part.fusion = dict(fusion, **(dict(tasks=tasks) if tasks else {}))
    return cfg


def unfused(cfg: Config, modules: Sequence[str]) -> Config:
    """A copy with one module or none, at weight one, and no fusion."""
    cfg = deepcopy(cfg)
    cfg.model.backbone.update(
        modules=list(modules),
        new_module=None,
        fusion=None,
        task=None,
        learn_tasks=None)
    _empty_necks(cfg)
    cfg.custom_hooks = without_hooks(cfg, WEIGHING)
    return cfg


def _empty_necks(cfg: Config) -> None:
    for neck in _fusion_necks(cfg):
        neck.update(modules=[], task=None, learn_tasks=None)


def _full(cfg: Config) -> Variant:
    """The trunk unfrozen, at a tenth of the rate where none is given."""
    cfg = unfused(cfg, [])
    trunk = cfg.model.backbone.trunk
    cfg.model.backbone = without_weights(trunk)
    paramwise = cfg.optim_wrapper.get('paramwise_cfg') or {}
    keys = dict(backbone=dict(lr_mult=0.1))
    keys.update(paramwise.get('custom_keys') or {})
    cfg.optim_wrapper.paramwise_cfg = dict(paramwise, custom_keys=keys)
    return Variant((FULL, ), cfg, trunk)


# ------------------------------------------------------------------ the demo


def variants(cfg: Config) -> List[Variant]:
    """The baselines of the demo, which save time.

    All warm the same head from the same values on cached features with the
    same settings. Fused ones then learn gates and head together, and warm the
    head again if gates may be replaced in the end; for as many epochs more
    the other heads learn on cached features, so that in the end none has seen
    the few images more often than another.

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
    _warm_up(cfg).update(evaluate=True, again=_replaces(cfg))
    result = [Variant((TRUNK, ), _cached(cfg, []))]
    for name in cfg.model.backbone.modules:
        result.append(Variant((SINGLE + name, ), _cached(cfg, [name])))
    uniform = refused(cfg, dict(type='vim_mm.EnsMoE'))
    uniform.custom_hooks = without_hooks(uniform, CHOOSING)
    return result + [
        Variant(('uniform gates', 'Ens-MoE, trained from uniform'), uniform),
        Variant(('score-started gates', 'trained from scores'), cfg),
    ]


def _warm_up(cfg: Config) -> dict:
    return next(
        h for h in cfg.custom_hooks if type_name(h) == 'WarmHeadHook')


def _cached(cfg: Config, modules: List[str]) -> Config:
    """One module or none, all of whose epochs are on cached features."""
    cfg = unfused(cfg, modules)
    warm = _warm_up(cfg)
    warm.epochs *= 1 + warm.pop('again')
    warm.epochs += cfg.train_cfg.max_epochs
    cfg.train_cfg.max_epochs = 0
    cfg.param_scheduler = None
    return cfg
