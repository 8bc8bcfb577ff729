# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Parts of a model that would learn nothing, as they are multiplied by 0."""

import logging
from difflib import get_close_matches
from numbers import Real
from typing import Any, Dict, Iterator, Mapping, Optional, Tuple

import numpy as np
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor, nn

from vim_mm.models.backbones import ViMBackbone
from vim_mm.models.distillers import BaseDistiller
from vim_mm.models.fusion import BaseFusion, FixedFusion
from vim_mm.models.heads import TaskHeads
from vim_mm.models.multitask import MultiTaskModel
from vim_mm.registry import MODELS
from vim_mm.utils.messages import short

#: How weights of classes are given.
_WEIGHTS = (list, tuple, np.ndarray, Tensor)
#: A task whose weight is so much smaller than another's is as good as off.
_FAINT = 1e-4


def check_losses(model: BaseModel) -> None:
    """Refuse losses that are all multiplied by 0, or by no number.

    Heads whose losses have no weight that is known are let pass.

    Args:
        model (BaseModel): The model of a run, not wrapped.

    Raises:
        ValueError: If nothing of the model, or of a task, could learn.
    """
    if isinstance(model, BaseDistiller):
        _check_help(model)
    elif isinstance(model, MultiTaskModel):
        for task in model.learning:
            if _are_off(model.models[task], f'model.tasks.{task}'):
                raise _nothing(f'model.tasks.{task}')
        _say_faint(model)
    elif _are_off(model, 'model'):
        raise _nothing('model')


def _say_faint(model: MultiTaskModel) -> None:
    weights = {task: model.loss_weights[task] for task in model.learning}
    for task, weight in weights.items():
        if 0 < weight < _FAINT * max(weights.values()):
            _warn(f'`model.loss_weights.{task}` is {weight:g}, and that of '
                  f'others up to {max(weights.values()):g}: what the tasks '
                  f"share learns nearly nothing of '{task}'.")


def _nothing(where: str) -> ValueError:
    return ValueError(
        f'All losses of `{where}` are multiplied by 0, so nothing of it would '
        'learn; give one of them a `loss_weight` above 0 (and its '
        '`class_weight`, if it has one).')


def _check_help(model: BaseDistiller) -> None:
    """A student may learn from its help alone, or by itself."""
    helps = model.help_weights()
    own = not _are_off(model.student, 'model.student') and model.learns_alone()
    if helps and not any(helps.values()):
        if not own:
            raise ValueError(
                f'The weights {short(sorted(helps))} of `model` are 0, and '
                "those of the student's own losses, so nothing would learn; "
                'give one of them more.')
        _warn(f'The weights {short(sorted(helps))} of `model` are 0: the '
              'student learns without help.')
    elif not own and not model.teaches_head():
        _warn("The student's own losses have the weight 0, and no criterion "
              'reads its class scores, so its head learns nothing; add '
              "('logits', 'logits') to `model.criteria`, or raise "
              '`model.own_weight`.')


def _are_off(model: nn.Module, where: str) -> bool:
    """Whether no loss of a model counts; heads of which none does are named.

    Raises:
        ValueError: If a weight is no number of 0 or more.
    """
    off: Dict[str, bool] = {}
    for name, head in _heads(model, where):
        weights = dict(_weights(head))
        for loss, weight in weights.items():
            if not 0 <= weight < float('inf'):
                raise ValueError(
                    f'`{name}.{loss}` has the weight {weight}; give a number, '
                    '0 or more: a loss of a negative weight is made larger.')
        off[name] = bool(weights) and not any(weights.values())
        idle = [loss for loss, weight in weights.items() if not weight]
        if idle and not off[name]:
            _warn(f'{", ".join(f"`{name}.{loss}`" for loss in idle)} of '
                  '`loss_weight` 0: what it would teach is not learned.')
        _say_unlearned(name, head)
    if off and all(off.values()):
        return True
    for name in (name for name, is_off in off.items() if is_off):
        _warn(f'All losses of `{name}` are multiplied by 0: it learns nothing '
              'of its own; leave it out, or give it a `loss_weight`.')
    return False


def _heads(model: nn.Module, where: str) -> Iterator[Tuple[str, nn.Module]]:
    """The parts of a model that have a loss."""
    for name, part in model.named_children():
        inner = part.heads if isinstance(part, TaskHeads) else part
        if isinstance(inner, (nn.ModuleList, nn.ModuleDict)):
            yield from _heads(inner, f'{where}.{name}')
        elif callable(getattr(part, 'loss', None)):
            yield f'{where}.{name}', part


def _weights(head: nn.Module) -> Iterator[Tuple[str, float]]:
    """What each loss inside of a head is multiplied by, as far as is known."""
    for name, part in head.named_modules():
        weight = vars(part).get('loss_weight')
        if isinstance(weight, Real):
            factor = _largest(vars(part).get('class_weight'))
            yield name, float(weight) * (1. if factor > 0 else factor)


def _say_unlearned(name: str, head: nn.Module) -> None:
    """Name classes that a loss multiplies by 0."""
    for loss, part in head.named_modules():
        given = vars(part).get('class_weight')
        if _largest(given) > 0 and isinstance(given, _WEIGHTS):
            off = np.flatnonzero(np.asarray(given, float) == 0).tolist()
            if off:
                _warn(f'`{name}.{loss}.class_weight` is 0 for the classes '
                      f'{short(off)}: nothing is learned of them.')


def _largest(class_weight: Any) -> float:
    """The largest weight of a class; 1 where they have none."""
    if not isinstance(class_weight, _WEIGHTS) or not len(class_weight):
        return 1.
    return float(np.max(np.asarray(class_weight, float)))


# ------------------------------------------------------------------- modules


def check_scales(backbones: Mapping[str, ViMBackbone]) -> None:
    """Refuse a module that is to learn and whose output is multiplied by 0.

    Args:
        backbones (Mapping[str, ViMBackbone]): By their names in the model.

    Raises:
        ValueError: If there is one; one that is frozen is named.
    """
    for prefix, backbone in backbones.items():
        for name in backbone.bank.names:
            member = backbone.bank.members[name]
            learns = any(p.requires_grad for p in member.parameters())
            weighs = not _weighs_nothing(backbone.fusion, name)
            if not weighs and not learns:
                _warn(f"The weights of the module '{name}' of `{prefix}` are "
                      '0, so it adds nothing; give it another, or take it '
                      'out.')
            if learns and not weighs:
                raise ValueError(
                    f"The module '{name}' of `{prefix}` is to learn, and the "
                    'weights of its fusion are 0, so no gradient reaches it; '
                    'give it another weight, or let it not learn.')
            adapters = list(member.values())
            if not adapters or any(not isinstance(each.scale, Real)
                                   or each.scale for each in adapters):
                continue
            said = (f"The module '{name}' of `{prefix}`, a "
                    f'{type(adapters[0]).__name__}, multiplies its output by '
                    '0, so it adds nothing')
            if learns:
                raise ValueError(
                    f'{said} and no gradient reaches it; give its adapter '
                    'another `scale` (`alpha` of LoRA).')
            _warn(f'{said}; take it out of `modules`.')


def _weighs_nothing(fusion: Optional[BaseFusion], name: str) -> bool:
    """Whether fixed weights of a module are 0 in all that learns."""
    tasks = [task for task in fusion.learning
             if name in fusion.task_modules[task]] if isinstance(
                 fusion, FixedFusion) else []
    return bool(tasks) and not any(
        fusion.gates(task)[:, fusion.task_modules[task].index(name)].any()
        for task in tasks)


# ------------------------------------------------------------ initialisation


def check_layers(model: nn.Module) -> None:
    """Refuse an ``init_cfg`` for layers of which nobody has heard.

    mmengine looks for classes of that name, and passes over what has none.

    Args:
        model (nn.Module): The model of a run, not wrapped.

    Raises:
        ValueError: If a name is that of no class.
    """
    kinds = {kind for part in model.modules() for kind in type(part).__mro__}
    known = {kind.__name__ for kind in kinds} | set(dir(nn)) | {
        '_BatchNorm', '_InstanceNorm', '_ConvNd'}
    for name, part in model.named_modules():
        given = getattr(part, 'init_cfg', None)
        for cfg in given if isinstance(given, (list, tuple)) else [given]:
            layers = cfg.get('layer') if isinstance(cfg, Mapping) else None
            layers = [layers] if isinstance(layers, str) else layers or ()
            lost = [layer for layer in layers if layer not in known
                    and MODELS.get(layer) is None]
            if lost:
                near = get_close_matches(lost[0], known, 1, 0.75)
                raise ValueError(
                    f'`init_cfg` of `model.{name}` is for layers {lost[0]!r}, '
                    'and there is no such class, so it would do nothing; '
                    + (f"perhaps '{near[0]}' is meant." if near else
                       'correct it.'))


def _warn(said: str) -> None:
    print_log(said, logger='current', level=logging.WARNING)
