# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The data of each task of a run, built in its library and checked."""

from typing import Any, Dict, Mapping, Optional

from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset

from vim_mm.models.class_counts import class_counts, head_counts
from vim_mm.models.multitask import MultiTaskModel
from vim_mm.models.task_names import check_same_tasks
from vim_mm.utils.arguments import check_by_task, check_is_config
from vim_mm.utils.config import task_scopes, type_name
from vim_mm.utils.wrappers import unwrap

Scopes = Dict[str, Optional[str]]


def model_of(runner: Runner) -> MultiTaskModel:
    """The multi-task model of a run.

    Raises:
        ValueError: If its model is another one.
    """
    model = unwrap(runner.model)
    if not isinstance(model, MultiTaskModel):
        raise ValueError(not_multitask(type(model).__name__))
    return model


def not_multitask(name: str) -> str:
    """The sentence for a model of another type."""
    return (f'The loops of this run are for several tasks, but its model is '
            f'a {name}; use a MultiTaskModel, or the ordinary loops.')


def scopes_of(runner: Runner) -> Scopes:
    """The tasks of a run's model, each with its library.

    Raises:
        ValueError: If the model is no multi-task model.
    """
    if isinstance(runner.model, nn.Module):
        return model_of(runner).scopes
    # a strategy builds the model later
    if 'tasks' not in runner.model:
        raise ValueError(not_multitask(type_name(runner.model)))
    scope = DefaultScope.get_current_instance()
    return task_scopes(runner.model['tasks'], scope and scope.scope_name)


def by_task(cfg: Any, scopes: Scopes, what: str) -> Dict[str, Any]:
    """What a config says for each task; without those it leaves out.

    Raises:
        ValueError: If it is not by task, or names others than the model has.
    """
    check_by_task(cfg, what)
    single = {'dataset', 'type', 'metrics'} & set(cfg)
    if single and not set(cfg) & set(scopes):
        raise ValueError(f'`{what}` is that of one task; give one for each '
                         f'of {list(scopes)}.')
    check_same_tasks(cfg, list(scopes), what)
    given = {task: cfg[task] for task in scopes if cfg[task] is not None}
    if not given:
        raise ValueError(f'`{what}` leaves out all tasks.')
    return given


def build_loaders(runner: Runner, cfg: Any, scopes: Scopes,
                  what: str) -> Dict[str, DataLoader]:
    """The ordinary loader of each task.

    Args:
        runner (Runner): It builds them.
        cfg (Mapping[str, dict | DataLoader]): The loaders' configs by task.
        scopes (dict): The tasks, each with its library.
        what (str): Where the configs stand, for messages.

    Raises:
        ValueError: If a task or a batch size is missing, or a data set is
            empty.
    """
    return {
        task: build_loader(runner, loader, scopes[task], f'{what}.{task}')
        for task, loader in by_task(cfg, scopes, what).items()
    }


def build_loader(runner: Runner, cfg: Any, scope: Optional[str],
                 what: str) -> DataLoader:
    """The ordinary loader of a task; see :func:`build_loaders`."""
    if not isinstance(cfg, DataLoader):
        check_is_config(cfg, what)
        if 'dataset' not in cfg:
            raise ValueError(f'`{what}` has no `dataset`; give it one, or '
                             'None to leave the task out.')
        if 'batch_size' not in cfg:
            raise ValueError(f'`{what}` has no `batch_size`; say how many of '
                             'its samples a batch has.')
    with DefaultScope.overwrite_default_scope(scope):
        return runner.build_dataloader(
            cfg,
            seed=runner.seed,
            diff_rank_seed=runner._randomness_cfg.get('diff_rank_seed', False))


# -------------------------------------------------------------------- heads


def check_heads(model: MultiTaskModel, datasets: Mapping[str, Dataset],
                what: str) -> None:
    """Refuse data sets with other classes than the heads are built for.

    Args:
        model (MultiTaskModel): The model.
        datasets (Mapping[str, Dataset]): The data set of each task.
        what (str): Where they stand, for messages.

    Raises:
        ValueError: If the number of classes differs.
    """
    for task, dataset in datasets.items():
        counts = class_counts(dataset)
        for name, count in head_counts(model.models[task]):
            if counts and count not in counts:
                raise ValueError(
                    f"The data set of `{what}.{task}` has {counts[0]} "
                    f'classes, but `model.tasks.{task}.{name}` is built for '
                    f'{count}; set its `num_classes`, or the classes of the '
                    'data set in `metainfo`.')


def check_same_classes(first: Mapping[str, Dataset],
                       second: Mapping[str, Dataset]) -> None:
    """Refuse validation sets that number the classes otherwise.

    Raises:
        ValueError: If both name classes and they differ.
    """
    for task in first.keys() & second.keys():
        names = [
            list(
                map(str, (getattr(each[task], 'metainfo', None)
                          or {}).get('classes') or ()))
            for each in (first, second)
        ]
        if all(names) and names[0] != names[1]:
            raise ValueError(
                f"The classes of the task '{task}' are {names[0][:3]}, … in "
                f'training and {names[1][:3]}, … in validation; give both '
                'data sets the same ones, in one order.')
