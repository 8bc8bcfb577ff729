# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Learning rates that were meant for a trunk, which is frozen.

Configs of other people slow a pretrained backbone down, or decay its rates
from layer to layer. Beside a frozen trunk this would reach modules and gates
alone, which are new and need the full rate.
"""

import logging
from difflib import get_close_matches
from typing import Any, Dict, Iterator, Tuple

from mmengine.logging import print_log
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner
from torch import nn

from vim_mm.features.cache import check_filled, unwrap
from vim_mm.models.backbones import ViMBackbone
from vim_mm.models.class_counts import check_head
from vim_mm.utils.arguments import (check_arguments, check_is_config,
                                    check_number, passes_on)
from vim_mm.utils.config import class_of
from vim_mm.utils.misspelt import no_type

#: What constructors that decay rates by layer are given.
_DECAYS = ('decay_rate', 'layer_decay_rate')
_PARTS = ('bank', 'fusion')


def check_rates(optim_wrapper: Any, model: nn.Module) -> None:
    """Look at the rates of what learns beside a trunk.

    Args:
        optim_wrapper: Config of the optimizer wrapper. One that is built is
            left alone.
        model (nn.Module): The model, wrapped or not.

    Raises:
        ValueError: If modules and gates would not learn, or their rates
            depend on the trunk's layers.
    """
    if not isinstance(optim_wrapper, dict):
        return
    _check_wrapper(optim_wrapper)
    paramwise = optim_wrapper.get('paramwise_cfg') or {}
    if any(backbones(unwrap(model))):
        _check_keys(unwrap(model), paramwise.get('custom_keys') or {})
    for prefix, backbone in backbones(unwrap(model)):
        _refuse_decay(optim_wrapper.get('constructor'), paramwise)
        slow = _slowed(prefix, backbone, paramwise.get('custom_keys') or {})
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
    """Refuse a run with a frozen trunk in which nothing would be learned.

    Raises:
        ValueError: If nothing requires gradients, a rate is zero for all, or
            for all modules or gates, what would be learned is not saved, the
            data fills no batch, no image of a detector has a box, or the head
            is built for fewer classes.
    """
    model = unwrap(runner.model)
    if not any(backbones(model)):
        return
    loader = runner.train_dataloader
    check_filled(loader)
    if _has_no_box(loader.dataset):
        raise ValueError(
            'No image of the training set has a box of the classes that '
            '`train_dataloader` names, so nothing would be learned; give '
            "`metainfo` the names in its annotations, and look at the data's "
            'filters.')
    check_head(model, loader.dataset)
    if not any(param.requires_grad for param in model.parameters()):
        raise ValueError(
            'Nothing of the model requires gradients, so nothing would learn; '
            'set `model.backbone.new_module` or `model.backbone.fusion`, or '
            'unfreeze its head.')
    _check_optimized(runner, model)


def _check_optimized(runner: Runner, model: nn.Module) -> None:
    groups = getattr(runner.optim_wrapper, 'param_groups', None) or []
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
    """Whether a data set of a detector has no box at all."""
    look = getattr(dataset, 'get_data_info', None)
    if look is None or not len(dataset) or 'instances' not in look(0):
        return False
    # the first image has some, but for the case that is looked for
    return not any(look(i)['instances'] for i in range(len(dataset)))


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
    for key in ('lr', 'weight_decay', 'momentum'):
        if cfg.get(key) is not None:
            check_number(cfg[key], f'{what}.{key}')


def _check_wrapper(optim_wrapper: dict) -> None:
    if isinstance(optim_wrapper.get('optimizer'), dict):
        check_optimizer(optim_wrapper['optimizer'], 'optim_wrapper.optimizer')
    paramwise = optim_wrapper.get('paramwise_cfg') or {}
    for name, own in (paramwise.get('custom_keys') or {}).items():
        for key in ('lr_mult', 'decay_mult'):
            if key in own:
                check_number(
                    own[key],
                    f"optim_wrapper.paramwise_cfg.custom_keys['{name}'].{key}")


def _check_keys(model: nn.Module, keys: Dict[str, dict]) -> None:
    """Name keys of rates that move nothing; refuse those that are misspelt."""
    learns = {n: p.requires_grad for n, p in model.named_parameters()}
    prefixes = {
        name.rsplit('.', levels)[0]
        for name in learns for levels in range(1, name.count('.') + 1)
    }
    for key, own in keys.items():
        held = [each for name, each in learns.items() if key in name]
        if held and not any(held) and 'lr_mult' in own:
            print_log(
                f"`paramwise_cfg.custom_keys['{key}']` is the rate of "
                f'{len(held)} parameters that are frozen, so it moves '
                'nothing.',
                logger='current',
                level=logging.WARNING)
        alike = [p for p in prefixes if p.count('.') == key.count('.')]
        near = [] if held else get_close_matches(key, alike, 1, 0.85)
        if near:
            raise ValueError(
                f"`paramwise_cfg.custom_keys['{key}']` is the rate of no "
                f"parameter; perhaps '{near[0]}' is meant.")


def _refuse_decay(constructor: Any, paramwise: dict) -> None:
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
            keys: Dict[str, dict]) -> Dict[str, Tuple[str, float]]:
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
