# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The parts of a multi-task model, each built from its own config."""

import logging
from copy import copy, deepcopy
from functools import partial
from typing import List, Optional

from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from torch import nn

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import arguments_of, check_is_config
from vim_mm.utils.config import class_of, type_name
from ..task_names import check_task_name
from ..tasks import holders
from .mutual_information import MutualInformation


def build_backbone(cfg: dict, tasks: List[str]) -> nn.Module:
    """The backbone, which is told the tasks if its type takes them.

    Args:
        cfg (dict): Its config.
        tasks (list[str]): The tasks, unless the config names some.

    Raises:
        ValueError: If it is no config, or says which tasks learn.
    """
    check_is_config(cfg, 'model.backbone')
    if cfg.get('learn_tasks') is not None:
        raise ValueError('`model.backbone.learn_tasks` is that of the whole '
                         'model here; set `model.learn_tasks`.')
    kind = class_of(cfg, MODELS)
    if kind and 'tasks' in arguments_of(kind) and cfg.get('tasks') is None:
        cfg = copy(cfg)
        cfg['tasks'] = tasks
    return MODELS.build(cfg)


def name_idle(backbone: nn.Module, tasks: List[str]) -> None:
    """Name the tasks that a backbone has parts of, and nothing runs.

    Args:
        backbone (nn.Module): The backbone.
        tasks (list[str]): The tasks that have a model.
    """
    # one alone serves all tasks
    parts = [part for part in holders(backbone) if len(part.tasks) > 1]
    known = dict.fromkeys(task for part in parts for task in part.tasks)
    idle = [task for task in known if task not in tasks]
    if idle:
        print_log(
            f'`model.backbone` has routers or gates of {idle}, and '
            '`model.tasks` no such task: they stay as they are; leave them '
            'out of `model.backbone.tasks` unless a file brings them along.',
            logger='current',
            level=logging.WARNING)


def build_task_model(name: str, cfg: dict, scope: Optional[str],
                     backbone: nn.Module) -> BaseModel:
    """A task's ordinary model over a backbone that is not a part of it.

    Args:
        name (str): Name of the task.
        cfg (dict): Config of the model, which stays as it is.
        scope (str, optional): Its library.
        backbone (nn.Module): What it is built with; its own is left out.

    Raises:
        ValueError: If the name or the type does not fit.
    """
    check_task_name(name)
    if 'loss' in name:
        raise ValueError(f"'{name}' cannot name a task: what is logged "
                         "with 'loss' in its name is added to the loss; "
                         'use another name.')
    what = f'model.tasks.{name}'
    cfg = deepcopy(cfg)
    with DefaultScope.overwrite_default_scope(scope):
        kind = class_of(cfg, MODELS)
        if kind is None:
            raise ValueError(
                f'`{what}` is a {cfg["type"]}, which {scope or "mmengine"} '
                'does not register; check its name, and that it begins with '
                "its library, such as 'mmdet.'.")
        if 'backbone' not in arguments_of(kind):
            raise ValueError(f'`{what}` is a {type_name(cfg)}, which has no '
                             'backbone; give a plain model.')
        if scope != 'mmpretrain':
            # elsewhere it names the weights of the backbone
            cfg.pop('pretrained', None)
        cfg['backbone'] = dict(type=_itself, module=backbone)
        model = MODELS.build(cfg)
    model._modules.pop('backbone')
    return model


def with_backbone(model: BaseModel, backbone: nn.Module,
                  task: str) -> BaseModel:
    """A copy of a task's model that has the backbone as a part.

    It holds the same tensors, and has the backbone run its task.

    Args:
        model (BaseModel): The model.
        backbone (nn.Module): The backbone.
        task (str): Name of the task.
    """
    model = copy(model)
    model.__dict__.pop('backbone', None)
    model._modules = {'backbone': backbone, **model._modules}
    model._forward_pre_hooks = model._forward_pre_hooks.copy()
    model.register_forward_pre_hook(partial(_select, task))
    return model


def _select(task: str, model: nn.Module, _: tuple) -> None:
    """Hook of an ordinary model: its backbone runs its task."""
    for part in holders(model.backbone):
        if task in part.tasks:  # others serve all tasks alike
            part.select_task(task)


def build_routing(cfg: dict) -> MutualInformation:
    """The losses of routing.

    Raises:
        ValueError: If it is no config of them.
    """
    check_is_config(cfg, 'model.routing')
    routing = MODELS.build(cfg)
    if not isinstance(routing, MutualInformation):
        raise ValueError(f'`model.routing` is a {type(routing).__name__}; '
                         'give a vim_mm.MutualInformation.')
    return routing


def _itself(module: nn.Module) -> nn.Module:
    """Stands as a type where a module takes the config of a part."""
    return module
