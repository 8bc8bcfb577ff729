# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Learning rates that were meant for a trunk, which is frozen.

Configs of other people slow a pretrained backbone down, or decay its rates
from layer to layer. Beside a frozen trunk this would reach modules and gates
alone, which are new and need the full rate.
"""

import logging
from math import inf
from typing import Any, Dict, Iterator, Mapping, Tuple

from mmengine.logging import print_log
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from vim_mm.datasets import SoftOnly
from vim_mm.features.loaders import check_filled
from vim_mm.models.backbones import ViMBackbone
from vim_mm.models.class_counts import check_head
from vim_mm.utils.arguments import (check_arguments, check_is_config,
                                    check_number, passes_on)
from vim_mm.utils.config import class_of
from vim_mm.utils.messages import short
from vim_mm.utils.misspelt import no_type
from vim_mm.utils.wrappers import unwrap
from .data_sets import parts_of
from .model_parts import is_own, saved_model
from .no_effect import check_layers, check_losses, check_scales
from .rate_names import check_custom_keys, check_paramwise

#: What settings of optimizers are below; none is negative.
_BELOW = dict(lr=inf, weight_decay=inf, momentum=1, eps=1)
#: What constructors that decay rates by layer are given.
_DECAYS = ('decay_rate', 'layer_decay_rate')
_PARTS = ('bank', 'fusion')


def check_rates(optim_wrapper: Any, model: nn.Module) -> None:
    """Look at the rates of a model, and of what learns beside a trunk.

    Args:
        optim_wrapper: Config of the optimizer wrapper. One that is built is
            left alone.
        model (nn.Module): The model, wrapped or not.

    Raises:
        ValueError: If a name or number is none, modules and gates would not
            learn, or their rates depend on the trunk's layers.
    """
    if not isinstance(optim_wrapper, dict):
        return
    optimizer = optim_wrapper.get('optimizer')
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        check_optimizer(optimizer, 'optim_wrapper.optimizer')
    keys = check_paramwise(optim_wrapper)
    check_custom_keys(unwrap(model), keys)
    for prefix, backbone in backbones(unwrap(model)):
        _refuse_decay(optim_wrapper.get('constructor'),
                      optim_wrapper.get('paramwise_cfg') or {})
        slow = _slowed(prefix, backbone, keys)
        zero = [key for key, mult in slow.values() if mult == 0]
        if zero:
            raise ValueError(
                f"The rate of all modules and gates of '{prefix}' is 0, since "
                f"`paramwise_cfg.custom_keys` has '{zero[0]}': the trunk is "
                'frozen anyway, so take the key out, or give its other parts '
                f'keys of their own: {_mend(slow)}.')
        if slow:
            key, mult = next(iter(slow.values()))
            print_log(
                f"`paramwise_cfg.custom_keys` gives '{key}' {mult} times the "
                'rate. The trunk is frozen, so this slows what is new there: '
                f'{", ".join(slow)}. For the full rate add {_mend(slow)}.',
                logger='current',
                level=logging.WARNING)


def refuse_idle_run(runner: Runner) -> None:
    """Refuse a run in which nothing would be learned.

    A model without parts of vim_mm is left alone.

    Raises:
        ValueError: If nothing requires gradients, a rate is zero for all, or
            for all modules or gates, losses or a module are multiplied by
            zero, what would be learned is not saved, the data fills no batch,
            no image of a detector has a box, or the head is built for fewer
            classes.
    """
    model = unwrap(runner.model)
    if not is_own(model):
        return
    loader = runner.train_dataloader
    for task, dataset in _data_sets(loader.dataset):
        if _has_no_box(dataset):
            raise ValueError(
                'No image of the training set has a box of the classes that '
                f'`train_dataloader{task}` names, so nothing would be '
                'learned; give `metainfo` the names in its annotations, and '
                "look at the data's filters.")
    if not hasattr(loader, 'loaders'):  # those of tasks have an end each
        check_filled(loader)
        check_head(saved_model(model), loader.dataset)
    if not any(param.requires_grad for param in model.parameters()):
        raise ValueError(
            'Nothing of the model requires gradients, so nothing would learn; '
            'set `model.backbone.new_module` or `model.backbone.fusion`, or '
            'unfreeze its head.')
    check_losses(model)
    check_layers(model)
    check_scales(dict(backbones(model)))
    _check_optimized(runner, model)


def _data_sets(dataset: Dataset) -> Iterator[Tuple[str, Dataset]]:
    """The data set of a run, or those of its tasks by '.TASK'."""
    by_task = getattr(dataset, 'datasets', None)
    if not isinstance(by_task, dict):
        by_task = {'': dataset}
    for task, each in by_task.items():
        yield f'.{task}' if task else '', each


def _check_optimized(runner: Runner, model: nn.Module) -> None:
    groups = getattr(runner.optim_wrapper, 'param_groups', None) or []
    if isinstance(groups, dict):  # of several optimizers
        groups = [group for each in groups.values() for group in each]
    rates = {
        id(param): group.get('initial_lr', group.get('lr'))
        for group in groups for param in group['params']
    }
    if rates and not any(rates.values()):
        raise ValueError('All learning rates are 0, so nothing would learn; '
                         'set `optim_wrapper.optimizer.lr`, or `eta_max` of a '
                         'OneCycleLR.')
    # ZeRO's optimizers hold parts of tensors that they have put together
    known = rates.keys() & set(map(id, model.parameters()))
    for prefix, backbone in backbones(model):
        if not backbone.save_trunk and any(
                param.requires_grad for param in backbone.trunk.parameters()):
            raise ValueError(
                f'The trunk of `{prefix}` requires gradients, and checkpoints '
                'leave it out, so what it learns would be lost; freeze it '
                '(`requires_grad_(False)`), or set '
                f'`model.{prefix}.save_trunk=True`.')
        for part in _PARTS:
            learns = [
                param for param in getattr(
                    getattr(backbone, part), 'parameters', tuple)()
                if param.requires_grad
            ]
            if known and learns and not any(
                    rates.get(id(param)) for param in learns):
                raise ValueError(
                    f'The optimizer moves nothing of `{prefix}.{part}`, since '
                    'its rate is 0 or the optimizer does not know it; set '
                    f"`paramwise_cfg.custom_keys['{prefix}.{part}']"
                    '=dict(lr_mult=1.0)`, or let it not learn.')


def backbones(model: nn.Module) -> Iterator[Tuple[str, ViMBackbone]]:
    """The backbones with a frozen trunk, each with its name."""
    for name, part in model.named_modules():
        if isinstance(part, ViMBackbone):
            yield name, part


def _has_no_box(dataset: Any) -> bool:
    """Whether a data set of a detector has no box at all, and needs one."""
    if isinstance(dataset, SoftOnly):
        return False
    parts = [part for part in parts_of(dataset)
             if len(part) and 'instances' in part.get_data_info(0)]
    # the first image has some, but for the case that is looked for
    return bool(parts) and not any(
        not each.get('ignore_flag') for part in parts
        for index in range(len(part))
        for each in part.get_data_info(index)['instances'])


def check_optimizer(cfg: Any, what: str) -> None:
    """Refuse an optimizer that there is not, and rates that are no numbers.

    Args:
        cfg (dict): Its config.
        what (str): Where it stands, for messages.

    Raises:
        ValueError: If its type or a setting of it is unknown, or a number is
            none.
    """
    check_is_config(cfg, what)
    if 'type' not in cfg:
        raise ValueError(f"`{what}` has no `type`; give one, such as 'AdamW'.")
    kind = class_of(cfg, OPTIMIZERS)
    if kind is None:
        raise no_type(OPTIMIZERS, cfg['type'])
    if isinstance(kind, type) and not passes_on(kind):
        check_arguments(kind, set(cfg) - {'type', '_scope_'}, ['params'])
    for key, below in _BELOW.items():
        if cfg.get(key) is not None:
            check_number(cfg[key], f'{what}.{key}', below)
    betas = cfg.get('betas')
    if betas is not None and not (
            isinstance(betas, (list, tuple)) and len(betas) > 1):
        raise ValueError(f'`{what}.betas` is {short(betas)}; give two numbers '
                         'from 0 to below 1.')
    for index, beta in enumerate(betas or ()):
        check_number(beta, f'{what}.betas[{index}]', 1)
    if cfg.get('maximize'):
        raise ValueError(f'`{what}.maximize` is {cfg["maximize"]}, so losses '
                         'would be made larger; leave it out.')
    shrinks = (cfg.get('lr') or 0) * (cfg.get('weight_decay') or 0)
    if shrinks >= 1:
        raise ValueError(
            f'`{what}` has a `weight_decay` of {cfg["weight_decay"]} at a '
            f'rate of {cfg["lr"]}: a step takes {shrinks:g} times each weight '
            'away; lower one of them.')


def _refuse_decay(constructor: Any, paramwise: Mapping) -> None:
    name = getattr(constructor, '__name__', str(constructor))
    decays = [key for key in _DECAYS if key in paramwise]
    if decays or 'Decay' in name:
        raise ValueError(
            f'`optim_wrapper.constructor` is {name!r}, which decays '
            'rates by the layers of a backbone, and those of a ViMBackbone '
            "are frozen; set it to 'DefaultOptimWrapperConstructor', and "
            f'`paramwise_cfg` to what it has beside {(decays or _DECAYS)[0]!r}'
            ' (`_delete_=True` keeps settings of a `_base_` out).')


def _slowed(prefix: str, backbone: ViMBackbone,
            keys: Mapping[str, Mapping]) -> Dict[str, Tuple[str, float]]:
    """Parts beside the trunk that a key for the whole backbone slows.

    As mmengine does it, the longest key that a parameter's name holds counts,
    of equally long ones the first in the alphabet.
    """
    found = {}
    for part in _PARTS:
        module = getattr(backbone, part)
        for name, param in module.named_parameters() if module else ():
            held = [key for key in keys if key in f'{prefix}.{part}.{name}']
            if not param.requires_grad or not held:
                continue
            key = min(held, key=lambda held: (-len(held), held))
            mult = keys[key].get('lr_mult', 1.)
            if key in f'{prefix}.' and mult < 1:
                found[f'{prefix}.{part}'] = key, mult
    return found


def _mend(slow: Dict[str, Tuple[str, float]]) -> str:
    return ', '.join(f"'{part}': dict(lr_mult=1.0)" for part in slow)
