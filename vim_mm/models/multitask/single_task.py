# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""One task of a multi-task model as an ordinary model of its library."""

from copy import deepcopy
from typing import Any, Dict, List, Mapping, Optional

from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import arguments_of
from vim_mm.utils.config import class_of, task_scopes, type_name
from vim_mm.utils.join_tasks import PARTS
from vim_mm.utils.kinds import KINDS
from ..checkpoint_notes import keep_notes
from ..moe.surgery import grow
from ..task_names import check_tasks
from ..tasks import holders, select_task

#: Key of a task's config that says which part of a checkpoint it needs.
LOAD_TASK = 'load_task'


def config_tasks(cfg: Config) -> List[str]:
    """The tasks of a multi-task config; none of an ordinary one."""
    model = cfg.get('model') or {}
    multitask = model.get('type') and type_name(model) == 'MultiTaskModel'
    return list(model.get('tasks') or ()) if multitask else []


def task_config(cfg: Config, task: str) -> Config:
    """The ordinary config of one task of a multi-task config.

    What a run, a test or an inferencer loads with it may be a checkpoint of
    the multi-task model or the task's own, see :func:`task_checkpoint`.

    Args:
        cfg (Config): The config of several tasks; it stays as it is.
        task (str): Name of the task.

    Raises:
        ValueError: If the config has no such task.
    """
    tasks = config_tasks(cfg)
    if not tasks:
        raise ValueError(f"The task '{task}' is asked for, but the config is "
                         'of one task only; leave the task out.')
    check_tasks([task], tasks, 'the config')
    scope = task_scopes(cfg.model.tasks, cfg.get('default_scope'))[task]
    own = cfg.copy()
    own.model = deepcopy(cfg.model.tasks[task])
    own.model.backbone = _backbone(cfg, task, tasks)
    own[LOAD_TASK] = task
    own.default_scope = scope
    if own.get('experiment_name'):
        own.experiment_name = f'{own.experiment_name}_{task}'
    for part in PARTS:
        if own.get(part):
            own[part] = own[part].get(task)
    for loop in ('val_cfg', 'test_cfg'):
        if own.get(loop):
            own[loop].pop('type', None)
    if own.get('train_cfg'):
        own.train_cfg = _train_cfg(own.train_cfg)
    _own_hooks(own, task)
    kind = next((k for k in KINDS.values() if k.scope == scope), None)
    if kind:
        own.visualizer = dict(own.get('visualizer') or {}, **kind.visualizer)
    return own


def _backbone(cfg: Config, task: str, tasks: List[str]) -> ConfigDict:
    """It knows all tasks, as in the checkpoint, and runs this one."""
    backbone, added = deepcopy(cfg.model.backbone), cfg.model.get('new_tasks')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        kind = class_of(backbone, MODELS)
    known = arguments_of(kind) if kind else ()
    if 'tasks' in known:
        backbone.setdefault('tasks',
                            [t for t in tasks if t not in (added or ())])
    if 'task' in known and task not in (added or ()):
        backbone.task = task
    if not added:
        return backbone
    return ConfigDict(
        type='vim_mm.grown', backbone=backbone, new_tasks=added, task=task)


@MODELS.register_module()
def grown(backbone: dict, new_tasks: Mapping[str, dict],
          task: str) -> nn.Module:
    """A backbone that has learned tasks one after the other.

    Args:
        backbone (dict): Config of the backbone at first.
        new_tasks (Mapping[str, dict]): See :class:`MultiTaskModel`.
        task (str): The task to run.
    """
    module = MODELS.build(backbone)
    for name, experts in new_tasks.items():
        grow(module, name, **experts)
    if holders(module):
        select_task(module, task)
    return module


def _train_cfg(cfg: ConfigDict) -> ConfigDict:
    dropped = ('type', 'weights')
    kept = {key: value for key, value in cfg.items() if key not in dropped}
    return ConfigDict(kept, by_epoch=False)


def _own_hooks(cfg: Config, task: str) -> None:
    """Leave out hooks of other tasks, and names that begin with the task."""
    cfg.custom_hooks = [{
        key: value
        for key, value in hook.items() if key != 'task'
    } for hook in cfg.get('custom_hooks') or ()
                        if hook.get('task', task) == task]
    saving = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    best = saving.get('save_best')
    if isinstance(best, str):
        prefix, _, name = best.partition('/')
        saving.save_best = name if prefix == task else None


# -------------------------------------------------------------- checkpoints


def stored_tasks(state: Mapping[str, Tensor]) -> List[str]:
    """The tasks of a multi-task model's state dict; none of another one."""
    names = (key.split('.') for key in state if key.startswith('models.'))
    return list(dict.fromkeys(name[1] for name in names if len(name) > 2))


def task_state(state: Mapping[str, Tensor], task: str) -> Dict[str, Tensor]:
    """The state dict of one task's ordinary model.

    Args:
        state (Mapping[str, Tensor]): Of the multi-task model.
        task (str): Name of the task.

    Raises:
        ValueError: If it holds no such task.
    """
    check_tasks([task], stored_tasks(state), 'the checkpoint')
    own = f'models.{task}.'
    return {
        key[len(own):] if key.startswith(own) else key: value
        for key, value in state.items() if key.startswith((own, 'backbone.'))
    }


def task_checkpoint(checkpoint: Dict[str, Any],
                    task: Optional[str],
                    file: str = 'The checkpoint') -> bool:
    """Reduce a multi-task checkpoint, in place, to what one task needs.

    Args:
        checkpoint (dict): As a run wrote it, or a state dict alone.
        task (str, optional): Name of the task; no other checkpoint than of
            one task is expected when None.
        file (str): Its name, for messages.

    Returns:
        bool: Whether it was one of several tasks.

    Raises:
        ValueError: If it is of several tasks, and this is none of them.
    """
    states = [checkpoint.get('state_dict', checkpoint)]
    tasks = stored_tasks(states[0])
    if not tasks:
        return False
    if task not in tasks:
        raise ValueError(
            f'{file} is of a model of the tasks {tasks}; say which of them is '
            'meant (`task`), or make a checkpoint of one '
            '(`vim-mm split-task`).')
    if 'ema_state_dict' in checkpoint:  # names begin with `module.`
        averaged = checkpoint['ema_state_dict']
        inner = {
            key[len('module.'):]: value
            for key, value in averaged.items() if key.startswith('module.')
        }
        checkpoint['ema_state_dict'] = {
            **{
                k: v
                for k, v in averaged.items() if not k.startswith('module.')
            },
            **{
                f'module.{k}': v
                for k, v in task_state(inner, task).items()
            }
        }
    kept = task_state(states[0], task)
    states[0].clear()
    states[0].update(kept)
    meta = checkpoint.get('meta') or {}
    keep_notes(checkpoint, f'models.{task}')
    described = (meta.get('dataset_meta') or {}).get('tasks')
    if described:
        meta['dataset_meta'] = described.get(task, {})
    return True
