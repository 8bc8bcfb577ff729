# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from abc import ABCMeta, abstractmethod
from typing import (Callable, Dict, List, Mapping, Optional, Sequence, Set,
                    Union)

from mmengine.model import BaseModule
from torch import Tensor, nn

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import (check_arguments, check_is_config,
                                    check_is_list)
from ..task_names import check_task_name, check_tasks

Tasks = Union[Sequence[str], Mapping[str, Sequence[str]]]
#: by module, the slots it occupies and the width of what each of them reads
Occupied = Mapping[str, Mapping[str, int]]


class BaseFusion(BaseModule, metaclass=ABCMeta):
    """How K modules are weighted, for several named tasks.

    A task knows the modules that were in the bank when it was made, and the
    slots these occupy, and keeps to them: a module that joins later cannot
    change its output, whatever slots it brings. One task runs, ``selected``;
    those that learn are ``learning``: at first both are the first task.

    Class attributes:
        merges (bool): Whether weights apply to the modules' parameters,
            giving one module, rather than to their outputs.
        per_picture (bool): Whether every image has weights of its own.

    Args:
        modules (Mapping[str, Mapping[str, int]]): All modules that can be
            fused, in order, each with the slots it occupies and the width of
            what these read. Slots are layers x branches inside a trunk,
            levels of a pyramid in a neck.
        tasks (Sequence[str] | Mapping[str, Sequence[str]]): Task names, each
            over all modules, or a mapping from task names to the modules
            each task knows. Defaults to ``('default', )``.
        init_cfg (dict, optional): mmengine init config. Defaults to None.

    Raises:
        ValueError: If a task names a module that is not there, or none.
    """

    merges = False
    per_picture = False

    def __init__(self,
                 modules: Occupied,
                 tasks: Tasks = ('default', ),
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.selected: Optional[str] = None
        self.learning: List[str] = []
        #: counts what sets weights otherwise than by learning
        self.changes = 0
        self.task_modules: Dict[str, List[str]] = {}
        self.task_slots: Dict[str, Dict[str, int]] = {}
        self._occupied: Dict[str, Dict[str, Set[str]]] = {}
        check_is_list(tasks, 'fusion.tasks')
        if not tasks:
            raise ValueError('`fusion.tasks` is empty; name a task.')
        for task in tasks:
            names = tasks[task] if isinstance(tasks, Mapping) else modules
            check_is_list(names, f'fusion.tasks.{task}')
            unknown = sorted(set(names) - set(modules))
            if unknown:
                raise ValueError(
                    f"Task '{task}' asks for the modules {unknown}, but the "
                    f'bank holds {list(modules)}; name those in '
                    '`fusion.tasks`.')
            self._register(task, {name: modules[name] for name in names})
            self.selected = self.selected or task
            self.learning = [self.selected]

    @property
    def tasks(self) -> List[str]:
        """The names of all tasks."""
        return list(self.task_modules)

    def add_task(self, task: str, modules: Occupied) -> None:
        """Add a task over ``modules``; other tasks are not touched.

        Args:
            task (str): Its name.
            modules (Mapping[str, Mapping[str, int]]): As for the class.

        Raises:
            ValueError: If the name is taken or not allowed, or there are no
                modules.
        """
        self._register(task, modules)

    def _register(self, task: str, modules: Occupied) -> None:
        if task in self.task_modules:
            raise ValueError(f"There is a task '{task}' already; choose "
                             'another name.')
        check_task_name(task)
        if not modules:
            raise ValueError(f"Task '{task}' has no modules; name "
                             'those that it is to weigh.')
        slots: Dict[str, int] = {}
        for widths in modules.values():
            slots.update(widths)
        self.task_modules[task] = list(modules)
        self.task_slots[task] = slots
        self._occupied[task] = {n: set(w) for n, w in modules.items()}

    def select(self, task: str) -> None:
        """Run ``task`` from now on; what learns stays as it is.

        Raises:
            ValueError: If there is no such task.
        """
        check_tasks([task], self.tasks, 'the fusion')
        self.selected = task

    def learn_tasks(self, tasks: Sequence[str]) -> None:
        """Let the weights of these tasks learn, and no others.

        Raises:
            ValueError: If there is no such task.
        """
        check_is_list(tasks, 'learn_tasks')
        check_tasks(tasks, self.tasks, 'the fusion')
        self.learning = list(dict.fromkeys(tasks))

    def function_settings(self) -> Dict[str, dict]:
        """What changes its function, beside tensors: its kind is told."""
        return {'': dict(fusion=type(self).__name__)}

    def parameters_of(self, task: str) -> List[nn.Parameter]:
        """What belongs to a task alone and can learn; by default nothing."""
        return []

    @abstractmethod
    def gates(self, task: str) -> Tensor:
        """The weights of a task, whatever the image.

        Returns:
            Tensor: Shape (S, N): a row for each of ``task_slots[task]`` and a
            column for each of ``task_modules[task]``, in their order.
        """

    def sums_to_one(self, task: str) -> bool:
        """Whether a task's weights always do so."""
        return False

    def is_off(self, task: str) -> bool:
        """Whether a task weighs no module at all, and none of it learns."""
        return False

    def named_gates(self, task: str) -> Dict[str, Dict[str, float]]:
        """The same as numbers: slot to module to weight.

        Modules that do not sit in a slot have a weight there too, but nothing
        that it weighs; these are left out.
        """
        names, occupied = self.task_modules[task], self._occupied[task]
        rows = self.gates(task).detach().tolist()
        return {
            slot: {
                name: weight
                for name, weight in zip(names, row) if slot in occupied[name]
            }
            for slot, row in zip(self.task_slots[task], rows)
        }

    def shown_gates(self, task: str) -> Dict[str, Dict[str, float]]:
        """The same for people, with what belongs to no module."""
        return self.named_gates(task)

    def rows(self, task: str) -> Callable[[int, Tensor], Tensor]:
        """A task's weights slot by slot, which may depend on the image.

        Args:
            task (str): The task.

        Returns:
            callable: From the place of a slot among ``task_slots[task]`` and
            the tokens that it reads, (B, L, C), to weights (N, ) or (B, N).
            For one pass: it holds what this has in common.
        """
        gates = self.gates(task)
        return lambda place, x: gates[place]


def build_fusion(cfg: dict, modules: Occupied) -> BaseFusion:
    """Build a fusion; a bare type is ours, whatever scope the run has.

    Args:
        cfg (dict): Config of the fusion.
        modules (Mapping[str, Mapping[str, int]]): The modules it weighs, see
            :class:`BaseFusion`.

    Raises:
        ValueError: If there is no such fusion, or it takes no such settings.
    """
    check_is_config(cfg, 'fusion')
    kind = str(cfg.get('type')).replace('vim_mm.', '', 1)
    if '.' not in kind and kind not in MODELS.module_dict:
        known = sorted(
            name for name, value in MODELS.module_dict.items()
            if isinstance(value, type) and issubclass(value, BaseFusion))
        raise ValueError(f"'{kind}' is no kind of fusion; known are {known}.")
    if kind in MODELS.module_dict:
        check_arguments(MODELS.module_dict[kind],
                        set(cfg) - {'type', '_scope_'}, ('modules', ))
    return MODELS.build({'_scope_': 'vim_mm', **cfg, 'modules': modules})
