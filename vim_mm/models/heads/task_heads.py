# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Any, Iterable, List, Mapping, Optional, Sequence

from mmengine.model import BaseModule, ModuleDict
from torch import Tensor, nn

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_is_config, check_is_list
from ..task_names import check_task_name, check_tasks
from ..tasks import TaskHolder


@MODELS.register_module()
class TaskHeads(TaskHolder, BaseModule):
    """One ordinary head per task, of which the selected one runs.

    It stands where a model has its head and is that head to the model: what
    it has not itself, it takes from the head that runs. What a model copies
    from its head when it is built (such as the number of classes in mmseg) is
    that of the task that runs then.

    Args:
        heads (Mapping[str, dict]): Task names and configs of their heads, of
            any registry.
        task (str, optional): The task to run; the first when None.
        learn_tasks (Sequence[str], optional): The tasks whose heads learn;
            the one to run when None.
        init_cfg (dict, optional): mmengine init config. Defaults to None.
        **kwargs: What the model tells its head, such as ``train_cfg``; it
            goes to every head that does not say otherwise.

    Raises:
        ValueError: If there are no heads, or a name fits no task.
    """

    def __init__(self,
                 heads: Mapping[str, dict],
                 task: Optional[str] = None,
                 learn_tasks: Optional[Sequence[str]] = None,
                 init_cfg: Optional[dict] = None,
                 **kwargs: Any) -> None:
        super().__init__(init_cfg=init_cfg)
        check_is_config(heads, 'heads')
        if not heads:
            raise ValueError('`heads` is empty; name a task and its head.')
        for name in heads:
            check_task_name(name)
        self.heads = ModuleDict({
            name: MODELS.build(head, default_args=kwargs)
            for name, head in heads.items()
        })
        # what a head keeps frozen itself stays so, whatever learns
        self._frozen = {
            name
            for name, param in self.heads.named_parameters()
            if not param.requires_grad
        }
        self.select_task(task)
        self.learn_tasks(learn_tasks)

    @property
    def tasks(self) -> List[str]:
        """The tasks that have a head."""
        return list(self.heads)

    @property
    def running(self) -> nn.Module:
        """The head that runs."""
        return self.heads[self.task]

    def select_task(self, task: Optional[str]) -> None:
        """See :meth:`TaskHolder.select_task`."""
        task = self.tasks[0] if task is None else task
        check_tasks([task], self.tasks, 'TaskHeads')
        self.task = task

    def learn_tasks(self, tasks: Optional[Sequence[str]] = None) -> None:
        """See :meth:`TaskHolder.learn_tasks`."""
        tasks = [self.task] if tasks is None else tasks
        check_is_list(tasks, 'learn_tasks')
        check_tasks(tasks, self.tasks, 'TaskHeads')
        self.learning = list(dict.fromkeys(tasks))
        for name, param in self.heads.named_parameters():
            learns = name.split('.')[0] in self.learning
            param.requires_grad_(learns and name not in self._frozen)

    def idle(self) -> Iterable[Tensor]:
        """See :meth:`TaskHolder.idle`; the other heads' parameters."""
        return [
            param for name, head in self.heads.items() if name != self.task
            for param in head.parameters()
        ]

    # ------------------------------------------------------- as a head does

    def forward(self, feats: Any, *args: Any, **kwargs: Any) -> Any:
        """What the running head makes of features."""
        return self.running(self.with_idle(feats), *args, **kwargs)

    def loss(self, feats: Any, *args: Any, **kwargs: Any) -> Any:
        """The running head's losses."""
        return self.running.loss(self.with_idle(feats), *args, **kwargs)

    def loss_and_predict(self, feats: Any, *args: Any, **kwargs: Any) -> Any:
        """The running head's losses and predictions."""
        return self.running.loss_and_predict(
            self.with_idle(feats), *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if 'heads' not in self._modules:  # not built yet
                raise
            return getattr(self.running, name)
