# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Several tasks in one model: which one runs, and which of them learn.

Both are asked of a whole model: :func:`select_task` says what the next pass
runs and may be called before every step; :func:`learn_tasks` says which tasks'
parameters require gradients and comes before the optimizer and a data-parallel
wrapper, which look at that once. A task that learns but does not run in a step
gets gradients of exactly zero, so that every process waits for the same
parameters.
"""

from abc import ABCMeta, abstractmethod
from typing import Any, Iterable, List, Optional, Sequence, Tuple

import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils._pytree import tree_flatten, tree_unflatten

from vim_mm.utils.arguments import check_is_list
from .task_names import check_tasks


class TaskHolder(metaclass=ABCMeta):
    """Mixin of the parts of a model that have something for each task.

    Attributes:
        tasks (list[str]): All its tasks; empty if it does not tell them apart.
        task (str, optional): The one that runs.
        learning (list[str]): Those that learn.
    """

    tasks: List[str]
    task: Optional[str]
    learning: List[str]

    @property
    def is_frozen(self) -> bool:
        """Whether nothing of it learns, as of a part of a frozen trunk.

        It then may run beside tasks that it does not know, and no task of the
        model makes it learn.
        """
        return False

    @abstractmethod
    def select_task(self, task: Optional[str]) -> None:
        """Run a task from now on; what learns stays as it is.

        Args:
            task (str, optional): Its name; the first task when None.

        Raises:
            ValueError: If there is no such task.
        """

    @abstractmethod
    def learn_tasks(self, tasks: Optional[Sequence[str]] = None) -> None:
        """Let these tasks learn, and no other; what runs stays as it is.

        Call it before the optimizer and a data-parallel wrapper are built.

        Args:
            tasks (Sequence[str], optional): Their names; the one that runs
                when None. Defaults to None.

        Raises:
            ValueError: If there is no such task.
        """

    @abstractmethod
    def idle(self) -> Iterable[Tensor]:
        """What the running task leaves out of its pass."""

    def with_idle(self, outputs: Any, *unread: Tensor) -> Any:
        """Outputs whose backward pass reaches what is idle, too.

        In training it reaches outputs that nobody reads, whatever the tasks.

        Args:
            outputs: What :func:`tie_in` takes.
            *unread (Tensor): What else the pass left out.

        Raises:
            ValueError: If a task that does not learn runs in training.
        """
        if not torch.is_grad_enabled():
            return outputs
        if (self.tasks and self.training and self.learning
                and self.task not in self.learning):
            raise ValueError(
                f"Task '{self.task}' runs in training, but those that learn "
                f'are {self.learning}; name it in `learn_tasks` before the '
                'optimizer and a data-parallel wrapper are built, or call '
                '`eval()` if it is only to run.')
        left_out = [*self.idle(), *unread] if self.tasks else unread
        left_out = [tensor for tensor in left_out if tensor.requires_grad]
        if not self.training and not left_out:
            return outputs
        return tie_in(outputs, left_out)


# ------------------------------------------------------------ whole models


def holders(model: nn.Module) -> List[TaskHolder]:
    """The parts of a model, wrapped or not, that tell tasks apart."""
    return [
        part for part in model.modules()
        if isinstance(part, TaskHolder) and part.tasks
    ]


def select_task(model: nn.Module, task: str) -> None:
    """Run a task in all parts of a model; what learns stays as it is.

    Parts with a single task of another name serve all tasks alike, as do
    frozen ones that do not know it.

    Args:
        model (nn.Module): The model, wrapped or not.
        task (str): Name of the task.

    Raises:
        ValueError: If no part, or one of those with several tasks, does not
            know it and is not frozen; then nothing has changed.
    """
    parts = holders(model)
    check_tasks([task], [t for part in parts for t in part.tasks], 'the model')
    for part in parts:
        if len(part.tasks) > 1 and not part.is_frozen:
            check_tasks([task], part.tasks, type(part).__name__)
    for part in parts:
        if task in part.tasks:
            part.select_task(task)


def learn_tasks(model: nn.Module, tasks: Sequence[str]) -> None:
    """Let tasks learn in all parts of a model; what runs stays as it is.

    Parts that know none of them serve all tasks alike and stay as they are,
    as do frozen ones.

    Args:
        model (nn.Module): The model, not yet wrapped.
        tasks (Sequence[str]): Names of the tasks.

    Raises:
        ValueError: If no part knows one of them, or the model is wrapped;
            then nothing has changed.
    """
    check_is_list(tasks, 'learn_tasks')
    if is_model_wrapper(model):
        raise ValueError(
            f'The tasks {list(tasks)} are to learn, but the model is wrapped '
            'already, which exchanges gradients of what required them then; '
            'name them in `learn_tasks` of the config, or before the wrapper '
            'is built.')
    parts = holders(model)
    check_tasks(tasks, [t for part in parts for t in part.tasks], 'the model')
    for part in parts:
        known = [task for task in tasks if task in part.tasks]
        if (known or not tasks) and not part.is_frozen:
            part.learn_tasks(known)


def idle(model: nn.Module) -> List[Tensor]:
    """What the running task leaves out of a pass of the whole model."""
    return [tensor for part in holders(model) for tensor in part.idle()]


def idle_in_all(model: nn.Module, tasks: Iterable[str],
                running: str) -> List[Tensor]:
    """What none of some tasks runs.

    Args:
        model (nn.Module): The model.
        tasks (Iterable[str]): The tasks, one at least.
        running (str): The task that runs, now and afterwards.
    """
    last, left = running, None
    for task in tasks:
        if task != last:
            select_task(model, task)
            last = task
        found = {id(param): param for param in idle(model)}
        left = found if left is None else {
            key: param
            for key, param in left.items() if key in found
        }
    if last != running:
        select_task(model, running)
    return list(left.values())


def let_learn(params: Iterable[nn.Parameter], learns: bool) -> None:
    """Let parameters require gradients, or not.

    Gradients of a step before go, too: an optimizer would follow them, and
    weight decay with them, whatever the parameter requires.
    """
    for param in params:
        param.requires_grad_(learns)
        if not learns:
            param.grad = None


# --------------------------------------------------------- idle parameters


class _TieIn(Function):
    """Tensors as they are, and zero gradients for what nobody reads."""

    @staticmethod
    def forward(ctx, num: int, *tensors: Tensor) -> Tuple[Tensor, ...]:
        ctx.idle = tensors[num:]
        # not the tensors themselves, which torch would return as views that
        # refuse to be changed in place
        return tuple(tensor.detach() for tensor in tensors[:num])

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple:
        return (None, *grads, *map(torch.zeros_like, ctx.idle))


def tie_in(outputs: Any, idle: Sequence[Tensor] = ()) -> Any:
    """Outputs whose backward pass gives zero gradients to what is not used.

    That are the idle tensors, and the outputs that nobody reads, such as the
    levels that a neck skips: every process then waits for the same parameters.
    Unlike ``outputs + 0 * sum(idle)`` it changes no bit of the outputs and
    computes nothing. Whichever output is used, all are reached.

    Args:
        outputs: A tensor, or a structure of tuples, lists and dicts of them.
        idle (Sequence[Tensor]): Those that require no gradient do not matter.
            Defaults to none.

    Returns:
        The same structure; ``outputs`` itself if there is nothing to reach.
    """
    if not torch.is_grad_enabled() or torch.jit.is_tracing():
        return outputs
    # ZeRO-3 leaves nothing of some, and waits for none of them
    idle = [
        tensor for tensor in idle if tensor.requires_grad
        and tensor.numel() == getattr(tensor, 'ds_numel', tensor.numel())
    ]
    leaves, structure = tree_flatten(outputs)
    floats = [
        index for index, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]
    # where something is idle, any output may be the one that is used
    tied = floats if idle else [i for i in floats if leaves[i].requires_grad]
    if not tied or (len(tied) == 1 and not idle):
        return outputs
    results = _TieIn.apply(
        len(tied), *(leaves[index] for index in tied), *idle)
    for index, result in zip(tied, results):
        leaves[index] = result
    return tree_unflatten(leaves, structure)
