# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Ordinary configs of single tasks as the parts of one of several tasks."""

import os.path as osp
from typing import Any, Optional

from mmengine.config import Config, ConfigDict

#: what a config of several tasks holds by task
PARTS = ('train_dataloader', 'val_dataloader', 'val_evaluator',
         'test_dataloader', 'test_evaluator')
#: parts of a loader that are functions
FUNCTIONS = ('collate_fn', 'worker_init_fn')


def join_tasks(**configs: str) -> ConfigDict:
    """Read one whole config per task and sort its parts by task.

    For use inside a config. A plain ``import`` would turn that into a config
    of mmengine's other style, hence::

        import importlib
        join = importlib.import_module('vim_mm.utils.join_tasks').join_tasks
        parts = join(
            cls='mmpretrain::resnet/resnet50_8xb32_in1k.py',
            det='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
        model = dict(type='vim_mm.MultiTaskModel', tasks=parts.tasks, ...)
        train_dataloader = parts.train_dataloader

    Types keep the scope of the library that each config is from.

    Args:
        **configs (str): By task: the path of a config, or of one of an
            installed package, ``'mmdet::...'``.

    Returns:
        ConfigDict: ``tasks`` (model configs), ``train_dataloader``,
        ``val_dataloader``, ``val_evaluator``, ``test_dataloader`` and
        ``test_evaluator``, each by task.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a config has no model.
    """
    parts = ConfigDict(tasks={}, **{part: {} for part in PARTS})
    for task, path in configs.items():
        cfg = _read(path)
        if not cfg.get('model'):
            raise ValueError(f"The config {path} of task '{task}' has no "
                             '`model`; give one of a whole run.')
        scope = _scope(path, cfg)
        if cfg.get('data_preprocessor'):
            cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
        parts.tasks[task] = _scoped(cfg.model, scope)
        for part in PARTS:
            if cfg.get(part):
                loader = part.endswith('dataloader')
                parts[part][task] = (_scoped_inside if loader else _scoped)(
                    cfg[part], scope)
    return parts


def _read(path: str) -> Config:
    if '::' in path:  # only inheritance knows how to find these
        return Config.fromstring(f'_base_ = {path!r}', '.py')
    if not osp.isfile(path):
        raise FileNotFoundError(f'There is no config file {path}: check the '
                                'path.')
    return Config.fromfile(path)


def _scope(path: str, cfg: Config) -> Optional[str]:
    return cfg.get('default_scope') or path.rpartition('::')[0] or None


def _scoped(part: Any, scope: Optional[str]) -> Any:
    """A typed config, or a list of some, whose names are of a scope."""
    if isinstance(part, list):
        return [_scoped(item, scope) for item in part]
    if scope and 'type' in part:
        part.setdefault('_scope_', scope)
    return part


def _scoped_inside(loader: ConfigDict, scope: Optional[str]) -> ConfigDict:
    for key, part in loader.items():
        # mmengine passes what is beside a function's type on to it
        if isinstance(part, dict) and key not in FUNCTIONS:
            loader[key] = _scoped(part, scope)
    return loader
