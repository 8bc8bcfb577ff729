# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Names of tasks, and what is given for each of them."""

from typing import Dict, Iterable, Mapping, Optional, Sequence

from mmengine.model import ModuleDict
from torch import nn

from vim_mm.utils.arguments import check_by_task, check_is_list, check_number


def check_tasks(tasks: Sequence[str], known: Sequence[str], who: str) -> None:
    """Refuse names of no task.

    Args:
        tasks (Sequence[str]): The names.
        known (Sequence[str]): Those that there are.
        who (str): What knows them.

    Raises:
        ValueError: If one is not known, or a single name is given.
    """
    check_is_list(tasks, 'tasks')
    for task in tasks:
        if task not in known:
            known = list(dict.fromkeys(known))
            raise ValueError(f"There is no task '{task}'; {who} knows "
                             f'{known}.')


def check_task_name(task: str) -> None:
    """Refuse a name that no task can have.

    Raises:
        ValueError: If it is no string, empty, has dots or is a method's.
    """
    # parameters are kept under task names, beside their dict's methods
    if not isinstance(task, str) or not task or '.' in task or any(
            hasattr(d(), task) for d in (nn.ParameterDict, ModuleDict)):
        raise ValueError(f"'{task}' cannot name a task; use a name "
                         'without dots that is no torch method name.')


def check_task_names(tasks: Sequence[str], what: str) -> None:
    """Refuse names that tasks cannot have, or that two have.

    Args:
        tasks (Sequence[str]): The names.
        what (str): Where they stand, for messages.

    Raises:
        ValueError: If it is no list of names, or one does not fit.
    """
    check_is_list(tasks, what)
    seen = set()
    for task in tasks:
        check_task_name(task)
        if task in seen:
            raise ValueError(f"`{what}` names '{task}' twice; give each task "
                             'a name of its own.')
        seen.add(task)


def check_weights(weights: Optional[Mapping[str, float]],
                  tasks: Sequence[str], what: str) -> Dict[str, float]:
    """One number for each task, 1 if none are given.

    Args:
        weights (Mapping[str, float], optional): The numbers.
        tasks (Sequence[str]): The tasks.
        what (str): Where they stand, for messages.

    Raises:
        ValueError: If a task is unknown or missing, or a number is negative.
    """
    if weights is None:
        return dict.fromkeys(tasks, 1.)
    check_by_task(weights, what)
    check_same_tasks(weights, tasks, what)
    for task, weight in weights.items():
        check_number(weight, f'{what}.{task}')
    return {task: float(weights[task]) for task in tasks}


def check_same_tasks(given: Iterable[str], tasks: Sequence[str],
                     what: str) -> None:
    """Refuse what names other tasks than the model has, or not all.

    Raises:
        ValueError: If one is not known, or missing.
    """
    given = list(given)
    for name in given:
        if name not in tasks:
            raise ValueError(f"`{what}` names '{name}', but the tasks of the "
                             f'model are {list(tasks)}.')
    for name in tasks:
        if name not in given:
            raise ValueError(f"`{what}` lacks the task '{name}' of the "
                             f'model; it names {given}.')
