# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Where the gates of a pass come from."""

from typing import Callable, Dict, List, Sequence

import torch
from torch import Tensor

from ..fusion import BaseFusion
from ..task_names import check_tasks


class TaskWeighing:
    """One task's gates, for all images of a batch.

    Args:
        fusion (BaseFusion): The fusion.
        task (str): The task.
    """

    def __init__(self, fusion: BaseFusion, task: str) -> None:
        self.fusion = fusion
        self.task = task
        self.names: List[str] = fusion.task_modules[task]
        self.places = _places(fusion.task_slots[task])
        self.merges = fusion.merges
        self.in_slots = fusion.per_picture

    def gates(self) -> Tensor:
        """Shape (S, N), see :meth:`BaseFusion.gates`."""
        return self.fusion.gates(self.task)

    def rows(self) -> Callable[[int, Tensor], Tensor]:
        """Gates that depend on what a slot reads, for one pass."""
        return self.fusion.rows(self.task)


class MixedWeighing:
    """Gates of several tasks, one task for each image of a batch.

    Args:
        fusion (BaseFusion): The fusion.
        tasks (Sequence[str]): A task for each image.

    Raises:
        ValueError: If a task is unknown, or gates of the fusion cannot
            differ from image to image, or depend on what a slot reads.
    """

    in_slots = merges = False

    def __init__(self, fusion: BaseFusion, tasks: Sequence[str]) -> None:
        if fusion.merges or fusion.per_picture:
            raise ValueError(
                f'{type(fusion).__name__} cannot weigh modules for several '
                'tasks in one batch; run one batch for each task.')
        check_tasks(tasks, fusion.tasks, 'the fusion')
        self.fusion = fusion
        self.tasks = list(tasks)
        known = list(dict.fromkeys(tasks))
        self.names = list(
            dict.fromkeys(n for t in known for n in fusion.task_modules[t]))
        self.places = _places(
            dict.fromkeys(s for t in known for s in fusion.task_slots[t]))
        # of each task, which rows and columns of the whole are its own
        self._parts = {
            task: ([self.places[s] for s in fusion.task_slots[task]],
                   [self.names.index(n) for n in fusion.task_modules[task]])
            for task in known
        }
        self._of_image = [known.index(task) for task in tasks]

    def gates(self) -> Tensor:
        """Shape (S, B, N): zero for modules that a task does not know."""
        whole = []
        for task, (rows, columns) in self._parts.items():
            own = self.fusion.gates(task)
            part = own.new_zeros(len(self.places), len(self.names))
            rows = torch.tensor(rows, device=own.device)[:, None]
            columns = torch.tensor(columns, device=own.device)
            whole.append(part.index_put((rows, columns), own))
        return torch.stack(whole, dim=1)[:, self._of_image]


def _places(slots: Sequence[str]) -> Dict[str, int]:
    return {slot: place for place, slot in enumerate(slots)}
