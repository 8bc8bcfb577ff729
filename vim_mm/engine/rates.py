# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Learning rates that were meant for a trunk, which is frozen.

Configs of other people slow a pretrained backbone down, or decay its rates
from layer to layer. Beside a frozen trunk this would reach modules and gates
alone, which are new and need the full rate.
"""

import logging
from typing import Any, Dict, Iterator, Tuple

from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from vim_mm.features.cache import unwrap
from vim_mm.models.backbones import ViMBackbone

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
    paramwise = optim_wrapper.get('paramwise_cfg') or {}
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
        ValueError: If nothing requires gradients, each rate is zero, or no
            image of a detector has a box.
    """
    model = unwrap(runner.model)
    if not any(backbones(model)):
        return
    if _has_no_box(runner.train_dataloader.dataset):
        raise ValueError(
            'No image of the training set has a box of the classes that '
            '`train_dataloader` names, so nothing would be learned; give '
            "`metainfo` the names in its annotations, and look at the data's "
            'filters.')
    if not any(param.requires_grad for param in model.parameters()):
        raise ValueError(
            'Nothing of the model requires gradients, so nothing would learn; '
            'set `model.backbone.new_module` or `model.backbone.fusion`, or '
            'unfreeze its head.')
    groups = getattr(runner.optim_wrapper, 'param_groups', None) or []
    rates = [g.get('initial_lr', g.get('lr')) for g in groups]
    if rates and not any(rates):
        raise ValueError('All learning rates are 0, so nothing would learn; '
                         'set `optim_wrapper.optimizer.lr`.')


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


def _refuse_decay(constructor: Any, paramwise: dict) -> None:
    decays = [key for key in _DECAYS if key in paramwise]
    if decays:
        raise ValueError(
            f'`optim_wrapper.constructor` is {constructor!r}, which decays '
            'rates by the layers of a backbone, and those of a ViMBackbone '
            "are frozen; set it to 'DefaultOptimWrapperConstructor', and "
            f'`paramwise_cfg` to what it has beside {decays[0]!r} '
            '(`_delete_=True` keeps settings of a `_base_` out).')


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
