# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Dict, Iterable, List, Optional, Sequence, Tuple

from mmengine.model import BaseModule
from torch import Tensor, nn

from ..tasks import TaskHolder, check_task_name, check_tasks
from .experts import Experts
from .routers import Router

#: the one router of a layer that does not tell tasks apart
ALL_TASKS = 'all'


class MoELayer(TaskHolder, BaseModule):
    """A layer of experts with one router per task.

    Args:
        dims (int): Width C of tokens.
        num_experts (int): E.
        k (int): Experts per token.
        tasks (Sequence[str], optional): Each gets a router; one router for
            all when None.
        router (str): Kind of routers, see :class:`Router`. Defaults to
            ``'mlp'``.
        gate_scale (float): What gates, which are the router's probabilities
            as they are, are multiplied by. Defaults to 1.

    Raises:
        ValueError: If more experts are to run than there are, or a name fits
            no task.
    """

    def __init__(self,
                 dims: int,
                 num_experts: int,
                 k: int,
                 tasks: Optional[Sequence[str]] = None,
                 router: str = 'mlp',
                 gate_scale: float = 1.) -> None:
        super().__init__()
        self.dims = dims
        self.gate_scale = gate_scale
        tasks = [ALL_TASKS] if not tasks else list(tasks)
        for task in tasks:
            check_task_name(task)
        self.routers = nn.ModuleDict(
            {task: Router(dims, num_experts, router)
             for task in tasks})
        self.set_k(k)
        self.task = tasks[0]
        self.learning = tasks

    # -------------------------------------------------------------- tasks

    @property
    def tasks(self) -> List[str]:
        """The tasks that have a router."""
        return list(self.routers)

    @property
    def is_frozen(self) -> bool:
        """Whether no parameter learns."""
        return not any(param.requires_grad for param in self.parameters())

    @property
    def router(self) -> Router:
        """The router that runs."""
        return self.routers[self.task]

    def select_task(self, task: Optional[str]) -> None:
        """See :meth:`TaskHolder.select_task`."""
        task = self.tasks[0] if task is None else task
        check_tasks([task], self.tasks, type(self).__name__)
        self.task = task

    def learn_tasks(self, tasks: Optional[Sequence[str]] = None) -> None:
        """See :meth:`TaskHolder.learn_tasks`; all tasks when None."""
        tasks = self.tasks if tasks is None else list(tasks)
        check_tasks(tasks, self.tasks, type(self).__name__)
        self.learning = tasks
        for task, router in self.routers.items():
            router.requires_grad_(task in tasks)

    def idle(self) -> Iterable[Tensor]:
        """See :meth:`TaskHolder.idle`; the other tasks' routers."""
        return [
            param for task, router in self.routers.items()
            if task != self.task for param in router.parameters()
        ]

    def add_router(self, task: str, width: int) -> None:
        """A router for one more task, which learns.

        Raises:
            ValueError: If there is such a task, or the name fits none.
        """
        check_task_name(task)
        if task in self.routers:
            raise ValueError(f"There is a task '{task}' already; give "
                             'another name.')
        old = self.router
        router = Router(self.dims, width, old.kind)
        weight = next(old.parameters())
        self.routers[task] = router.to(weight).train(self.training)
        self.learning = [*self.learning, task]

    # --------------------------------------------------------------- pass

    def set_k(self, k: int) -> None:
        """Run ``k`` experts per token from now on.

        Raises:
            ValueError: If a router has fewer to choose from.
        """
        fewest = min(router.num_experts for router in self.routers.values())
        if not 1 <= k <= fewest:
            raise ValueError(f'`k` is {k}, but there are {fewest} experts to '
                             f'choose from; give 1 to {fewest}.')
        self.k = k

    def choose(self,
               p: Tensor,
               task: Optional[str] = None) -> Tuple[Tensor, Tensor]:
        """The k best experts of each token that are stored.

        Args:
            p (Tensor): (N, W) what the task's router gave.
            task (str, optional): The task; the one that runs when None.

        Returns:
            tuple[Tensor, Tensor]: Gates and experts, (N, k) each.
        """
        router = self.routers[self.task if task is None else task]
        gates, index = router.stored(p).topk(self.k, -1)
        return gates * self.gate_scale, index


class MoEMlp(MoELayer):
    """An MLP made of experts.

    ``y = sum over the k best e of p_e(x) expert_e(x)``, with the raw softmax
    probabilities ``p`` of the task's router.

    Args:
        dims (int): Width C of tokens.
        hidden (int): Hidden width of one expert; a dense MLP's divided by
            ``k`` costs a token what the dense MLP does.
        num_experts (int): E.
        k (int): Experts per token.
        tasks, router, gate_scale: See :class:`MoELayer`.
        act_cfg, dispatch: See :class:`Experts`.
    """

    def __init__(self,
                 dims: int,
                 hidden: int,
                 num_experts: int,
                 k: int,
                 tasks: Optional[Sequence[str]] = None,
                 router: str = 'mlp',
                 gate_scale: float = 1.,
                 act_cfg: Dict = dict(type='GELU'),
                 dispatch: str = 'auto') -> None:
        super().__init__(dims, num_experts, k, tasks, router, gate_scale)
        self.experts = Experts(dims, hidden, [num_experts], act_cfg, dispatch)

    def idle(self) -> Iterable[Tensor]:
        """Other tasks' routers, and experts that came after this task."""
        used = self.experts.first(self.router.num_experts)
        unused = self.experts.groups[len(used):]
        return [*super().idle(), *unused.parameters()]

    def add_task(self, task: str, num_experts: int = 0) -> None:
        """A new router, and experts that only later tasks know.

        The outputs of the other tasks stay the same, bit for bit.

        Args:
            task (str): Its name.
            num_experts (int): How many new experts. Defaults to 0.
        """
        if num_experts:
            self.experts.add(num_experts)
        self.add_router(task, len(self.experts))

    def keep(self, index: Sequence[int]) -> None:
        """Drop all stored experts but these.

        Routers keep their width and their softmax, so outputs stay the same,
        bit for bit, where no dropped expert is chosen.

        Args:
            index (Sequence[int]): The experts to keep, in ascending order.

        Raises:
            ValueError: If fewer than ``k`` would be left.
        """
        for task, router in self.routers.items():
            left = [i for i in index if i < router.num_experts]
            if len(left) < self.k:
                raise ValueError(
                    f"Task '{task}' runs {self.k} experts per token, but "
                    f'only {len(left)} would be left; keep more, or lower k.')
        for router in self.routers.values():
            router.keep([i for i in index if i < router.num_experts])
        self.experts.keep(index)

    def forward(self, x: Tensor) -> Tensor:
        """Run the task's experts.

        Args:
            x (Tensor): (..., C) tokens.

        Returns:
            Tensor: The same shape.
        """
        tokens = x.flatten(0, -2)
        gates, index = self.choose(self.router(tokens))
        y = self.experts(tokens, gates, index, self.router.num_experts)
        return self.with_idle(y.unflatten(0, x.shape[:-1]))
