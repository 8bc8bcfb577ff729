# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Tuple

from torch.utils.data import Dataset

from vim_mm.utils.seeds import seed_all


class Place(NamedTuple):
    """Where a sample stands in a run.

    Attributes:
        task (str): Its task.
        index (int): Its index in the task's data set.
        key (tuple[int]): What its augmentation is seeded by.
    """
    task: str
    index: int
    key: Tuple[int, ...]


class TaskDataset(Dataset):
    """Data sets of several tasks.

    Args:
        datasets (Mapping[str, Dataset]): The data set of each task.
    """

    def __init__(self, datasets: Mapping[str, Dataset]) -> None:
        self.datasets = dict(datasets)

    @property
    def metainfo(self) -> Dict[str, Dict[str, dict]]:
        """Under ``tasks``, what each data set says of itself."""
        return dict(
            tasks={
                task: dict(getattr(dataset, 'metainfo', None) or {})
                for task, dataset in self.datasets.items()
            })

    def __len__(self) -> int:
        return sum(map(len, self.datasets.values()))

    def __getitem__(self, place: Place) -> Tuple[str, Any]:
        """A task's name and its sample, augmented as its place says."""
        seed_all(*place.key)
        return place.task, self.datasets[place.task][place.index]


class TaskCollate:
    """Collates samples of one task as its own loader would.

    Args:
        collates (Mapping[str, Callable]): The function of each task.
    """

    def __init__(self, collates: Mapping[str, Callable]) -> None:
        self.collates = dict(collates)

    def __call__(self, samples: List[Tuple[str, Any]]) -> dict:
        """A batch that names its ``task``.

        Raises:
            ValueError: If the task's batches are no dicts.
        """
        task = samples[0][0]
        batch = self.collates[task]([sample for _, sample in samples])
        if not isinstance(batch, dict):
            raise ValueError(f"Batches of the task '{task}' are of type "
                             f'{type(batch).__name__}; let its pipeline end '
                             'in a stage that packs dicts, such as '
                             'PackInputs.')
        return dict(batch, task=task)
