# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from itertools import chain
from typing import (Dict, Iterable, List, Mapping, Optional, Sequence, Tuple,
                    Union)

from mmengine.model import BaseModule
from torch import Tensor, nn

from vim_mm.utils.arguments import check_number, check_width
from vim_mm.utils.state_dicts import plain_name
from ..task_names import check_task_name, check_task_names, check_tasks
from ..tasks import TaskHolder, let_learn
from .experts import Experts
from .growing import Start, start, start_again
from .routers import Router
from .structure import Structure, fit_state, structure_in

#: the one router of a layer that does not tell tasks apart
ALL_TASKS = 'all'


class MoELayer(TaskHolder, BaseModule):
    """A layer of experts with one router per task.

    Subclasses set ``experts``.

    Args:
        dims (int): Width C of tokens.
        num_experts (int): E.
        k (int): Experts per token.
        tasks (Sequence[str], optional): Each gets a router; one router for
            all when None.
        router (str): Kind of routers, see :class:`Router`. Defaults to
            ``'mlp'``.
        gate_scale (float | str): What gates, which are the router's
            probabilities as they are, are multiplied by; E / k when
            ``'auto'``. Defaults to 1.

    Raises:
        ValueError: If more experts are to run than there are, a number is out
            of its range, or a name fits no task.
    """

    experts: Experts

    def __init__(self,
                 dims: int,
                 num_experts: int,
                 k: int,
                 tasks: Optional[Sequence[str]] = None,
                 router: str = 'mlp',
                 gate_scale: Union[float, str] = 1.) -> None:
        super().__init__()
        check_width(num_experts, 'num_experts')
        tasks = [ALL_TASKS] if tasks is None else tasks
        check_task_names(tasks, 'tasks')
        tasks = list(tasks) or [ALL_TASKS]
        self.dims = dims
        self.routers = nn.ModuleDict(
            {task: Router(dims, num_experts, router)
             for task in tasks})
        # of the tasks that came later, and start as others
        self.starts: Dict[str, Start] = {}
        self.set_k(k)
        self.gate_scale = num_experts / k if gate_scale == 'auto' \
            else gate_scale
        check_number(self.gate_scale, 'gate_scale')
        if not self.gate_scale:
            raise ValueError('`gate_scale` is 0, so experts would add nothing '
                             "and learn nothing; give a number, or 'auto'.")
        self.task = tasks[0]
        self.learning = tasks
        self.routers_learn = True  # unless frozen, whatever task learns

    def function_settings(self) -> Dict[str, dict]:
        """What changes its function, beside tensors."""
        return {
            '': dict(
                k=self.k,
                gate_scale=float(self.gate_scale),
                act=type(self.experts.act).__name__)
        }

    # -------------------------------------------------------------- tasks

    @property
    def num_first(self) -> int:
        """How many experts there were before tasks came that brought some."""
        return next(iter(self.routers.values())).num_experts

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
            let_learn(router.parameters(), self.routers_learn
                      and task in tasks)

    def idle(self) -> Iterable[Tensor]:
        """Other tasks' routers, and experts that came after this task."""
        routers = [
            router for task, router in self.routers.items()
            if task != self.task
        ]
        later = self.experts.groups[len(self.used_by([self.task])):]
        return [
            param for part in (*routers, *later) for param in part.parameters()
        ]

    # ---------------------------------------------------------- structure

    def add_task(self,
                 task: str,
                 num_experts: int = 0,
                 like: Optional[str] = None,
                 usage: Optional[Mapping[str, Tensor]] = None) -> None:
        """A new router, which learns, and experts that earlier tasks ignore.

        The outputs of the other tasks stay the same, bit for bit.

        Args:
            task (str): Its name.
            num_experts (int): How many new experts. Defaults to 0.
            like (str, optional): The task that it starts as, whose outputs
                it gives, bit for bit, until it is trained; new experts then
                start as copies of its. All start afresh when None.
            usage (Mapping[str, Tensor], optional): How often each task has
                run each expert; the most used ones of ``like`` are copied.
                The first ones when None.

        Raises:
            ValueError: If there is such a task, or the name fits none.
        """
        check_task_name(task)
        if task in self.routers:
            raise ValueError(f"There is a task '{task}' already; give "
                             'another name.')
        if like is not None:
            check_tasks([like], self.tasks, type(self).__name__)
        first = next(self.router.parameters())
        router, begin = start(self.experts, self.routers, num_experts, like,
                              usage)
        router.to(first).train(self.training)
        if begin is not None:
            self.starts[task] = begin
        self.routers[task] = router
        self.learning = [*self.learning, task]

    def keep_tasks(self, tasks: Sequence[str]) -> None:
        """Drop the routers of all tasks but these; the first one runs.

        Raises:
            ValueError: If there is no such task.
        """
        check_tasks(tasks, self.tasks, type(self).__name__)
        for task in set(self.tasks) - set(tasks):
            del self.routers[task]
            self.starts.pop(task, None)
        self.learning = [task for task in self.learning if task in tasks]
        self.select_task(None)

    def keep(self, index: Sequence[int]) -> None:
        """Drop all stored experts but these.

        Routers keep their width and their softmax, so outputs stay the same,
        bit for bit, where no dropped expert is chosen.

        Args:
            index (Sequence[int]): The experts to keep, in ascending order.

        Raises:
            ValueError: If fewer than ``k`` would be left to a task.
        """
        kept = {
            task: [i for i in index if i < router.num_experts]
            for task, router in self.routers.items()
        }
        for task, left in kept.items():
            if len(left) < self.k:
                raise ValueError(
                    f"Task '{task}' runs {self.k} experts per token, but "
                    f'only {len(left)} would be left; keep more, or lower k.')
        for task, left in kept.items():
            self.routers[task].keep(left)
        if len(index) < len(self.experts):
            self.starts.clear()  # of experts that have moved
        self.experts.keep(index)

    @property
    def structure(self) -> Structure:
        """Its experts and routers."""
        named = chain(self.named_parameters(), self.named_buffers())
        return structure_in({name: value.shape for name, value in named})

    def restructure(self, structure: Structure,
                    tasks: Sequence[str]) -> None:
        """Be as a file says, with fresh weights for it to be loaded.

        Args:
            structure (Structure): Which routers and experts to have.
            tasks (Sequence[str]): The tasks of its routers, in order.

        Raises:
            ValueError: If a router would choose from experts that there are
                not.
        """
        for task, shape in structure.routers.items():
            check_task_name(task)
            if not 1 <= shape.num_experts <= structure.num_experts:
                raise ValueError(
                    f"The router of task '{task}' chooses from "
                    f'{shape.num_experts} experts, but {structure.num_experts}'
                    ' are stored; write the file again.')
        first = next(self.parameters())
        self.experts.resize(structure.groups)
        self.starts.clear()
        self.routers = nn.ModuleDict({
            task: Router.shaped(self.dims, structure.routers[task])
            for task in tasks
        })
        self.routers.to(first).train(self.training)
        self.learning = self.tasks
        self.select_task(None)

    def _load_from_state_dict(self, state_dict: dict, prefix: str,
                              *args) -> None:
        for task, router in self.routers.items():
            router.deepen(state_dict.get(f'{prefix}routers.{task}.slots'))
        own = self.structure
        fit_state(own, state_dict, prefix)
        start_again(self.starts, self.routers, own.groups, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def used_by(self, tasks: Iterable[str]) -> List[nn.Module]:
        """The groups of experts that these tasks may choose from."""
        return self.experts.first(
            max((self.routers[task].num_experts for task in tasks), default=0))

    # --------------------------------------------------------------- pass

    def check_k(self, k: int) -> None:
        """Refuse a ``k`` that some router cannot choose.

        Raises:
            ValueError: If a router has fewer to choose from.
        """
        fewest = min(router.num_places for router in self.routers.values())
        if not isinstance(k, int) or not 1 <= k <= fewest:
            raise ValueError(f'`k` is {k!r}, but there are {fewest} experts '
                             'to choose from; give a whole number from 1 to '
                             f'{fewest}.')

    def set_k(self, k: int) -> None:
        """Run ``k`` experts per token from now on; see :meth:`check_k`."""
        self.check_k(k)
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
        gates, index = router.choose(p, self.k)
        return gates * self.gate_scale, index


def moe_layers(model: nn.Module) -> Dict[str, MoELayer]:
    """The layers of experts of a model by name, in its order.

    Wrappers of its parts (FSDP, compilers) do not show in names.
    """
    return {plain_name(name): part for name, part in model.named_modules()
            if isinstance(part, MoELayer)}
