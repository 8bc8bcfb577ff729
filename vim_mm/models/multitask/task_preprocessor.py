# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Any, Mapping

from torch import nn

from ..task_names import check_tasks
from ..tasks import TaskHolder


class TaskPreprocessor(nn.Module):
    """Prepares a batch as the model of its task does.

    Args:
        model (TaskHolder): The multi-task model; it is no part of this one.
    """

    def __init__(self, model: TaskHolder) -> None:
        super().__init__()
        self.__dict__['model'] = model

    def forward(self, data: Any, training: bool = False) -> Any:
        """Prepare a batch.

        Args:
            data (dict): A batch; if it names no ``task``, the selected one
                is meant.
            training (bool): Whether it is for training. Defaults to False.

        Returns:
            dict: What the task's preprocessor gives, and the ``task``.
        """
        task = self.model.task
        if isinstance(data, Mapping) and 'task' in data:
            data = dict(data)
            task = data.pop('task')
            check_tasks([task], self.model.tasks, 'the model')
        data = self.model.models[task].data_preprocessor(data, training)
        return dict(data, task=task) if isinstance(data, Mapping) else data
