# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Iterable, List, Optional, Sequence

from torch import Tensor

from vim_mm.utils.arguments import check_is_list
from ..tasks import TaskHolder
from .base_fusion import BaseFusion


class FusionHolder(TaskHolder):
    """Mixin of parts whose ``fusion``, if any, holds their tasks.

    Class attributes:
        no_fusion (str): The end of the sentence that says there is none.
    """

    fusion: Optional[BaseFusion]
    no_fusion: str

    @property
    def tasks(self) -> List[str]:
        """The tasks of the fusion."""
        return [] if self.fusion is None else self.fusion.tasks

    @property
    def task(self) -> Optional[str]:
        """The task whose weights the forward pass applies."""
        return None if self.fusion is None else self.fusion.selected

    @property
    def learning(self) -> List[str]:
        """The tasks whose weights learn."""
        return [] if self.fusion is None else self.fusion.learning

    def select_task(self, task: Optional[str]) -> None:
        """See :meth:`TaskHolder.select_task`."""
        if self.fusion is not None:
            self.fusion.select(self.fusion.tasks[0] if task is None else task)
        elif task is not None:
            raise ValueError(f"Task '{task}' was asked for, but "
                             f'{self.no_fusion}')

    def learn_tasks(self, tasks: Optional[Sequence[str]] = None) -> None:
        """See :meth:`TaskHolder.learn_tasks`."""
        if tasks is not None:
            check_is_list(tasks, 'learn_tasks')
        if self.fusion is not None:
            self.fusion.learn_tasks([self.task] if tasks is None else tasks)
        elif tasks:
            raise ValueError(f'The tasks {list(tasks)} are to learn, but '
                             f'{self.no_fusion}')

    def idle(self) -> Iterable[Tensor]:
        """See :meth:`TaskHolder.idle`; the weights of other tasks, and of one
        that is off.
        """
        return [
            param for task in self.learning
            if task != self.task or self.fusion.is_off(task)
            for param in self.fusion.parameters_of(task)
        ]
