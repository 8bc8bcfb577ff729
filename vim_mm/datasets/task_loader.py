# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Loaders of several tasks, made of each task's ordinary loader."""

import logging
from typing import Callable, List, Mapping, Optional

from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.logging import print_log
from torch.utils.data import BatchSampler, DataLoader

from .task_dataset import TaskCollate, TaskDataset
from .task_sampler import TaskBatchSampler


class TaskLoaders:
    """The loaders of several tasks, one after the other.

    Args:
        loaders (Mapping[str, DataLoader]): Each task's own.
    """

    def __init__(self, loaders: Mapping[str, DataLoader]) -> None:
        self.loaders = dict(loaders)
        self.dataset = TaskDataset({
            task: loader.dataset
            for task, loader in loaders.items()
        })

    def of(self, task: str) -> DataLoader:
        """The ordinary loader of a task."""
        return self.loaders[task]

    def __len__(self) -> int:
        return sum(map(len, self.loaders.values()))


class TaskLoader(DataLoader):
    """Batches of one task each, as :class:`TaskBatchSampler` draws them.

    Workers are shared by the tasks: as many as the one that asks for most.

    Args:
        loaders (Mapping[str, DataLoader]): Each task's own, of which data
            set, batch size, shuffling and collating are taken.
        weights (Mapping[str, float]): See :class:`TaskBatchSampler`.
        num_steps (int): Steps of the whole run.

    Raises:
        ValueError: If a loader draws its samples in a way of its own.
    """

    def __init__(self, loaders: Mapping[str, DataLoader],
                 weights: Mapping[str, float], num_steps: int) -> None:
        # plain attributes: a DataLoader lets none of its own be set twice
        self.loaders = dict(loaders)
        parts = list(loaders.values())
        sizes = {task: len(one.dataset) for task, one in loaders.items()}
        sampler = TaskBatchSampler(sizes, {
            task: one.batch_sampler.batch_size
            for task, one in loaders.items()
        }, weights, num_steps, {
            task: _shuffles(task, one)
            for task, one in loaders.items()
        })
        workers = max(one.num_workers for one in parts)
        options: dict = {}
        if workers:
            options.update(
                persistent_workers=any(one.persistent_workers
                                       for one in parts),
                prefetch_factor=max(one.prefetch_factor or 2 for one in parts),
                multiprocessing_context=_first(parts,
                                               'multiprocessing_context'))
        super().__init__(
            TaskDataset({
                task: one.dataset
                for task, one in loaders.items()
            }),
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=TaskCollate({
                task: one.collate_fn
                for task, one in loaders.items()
            }),
            pin_memory=any(one.pin_memory for one in parts),
            timeout=max(one.timeout for one in parts),
            worker_init_fn=_InitWorker([one.worker_init_fn for one in parts]),
            **options)

    def of(self, task: str) -> DataLoader:
        """The ordinary loader of a task, as its config has it."""
        return self.loaders[task]


class _InitWorker:
    """Starts a worker as each task's loader would."""

    def __init__(self, starts: List[Optional[Callable]]) -> None:
        self.starts = [start for start in starts if start is not None]

    def __call__(self, worker: int) -> None:
        for start in self.starts:
            start(worker)


def _first(loaders: List[DataLoader], name: str) -> object:
    values = (getattr(loader, name) for loader in loaders)
    return next((value for value in values if value is not None), None)


def _shuffles(task: str, loader: DataLoader) -> bool:
    """Whether a task's samples are shuffled.

    Raises:
        ValueError: If its sampler does something else.
    """
    batches = loader.batch_sampler
    sampler = getattr(batches, 'sampler', None)
    if type(sampler) not in (DefaultSampler, InfiniteSampler):
        raise ValueError(
            f"The loader of the task '{task}' has a "
            f'{type(sampler).__name__}, but which samples a step sees is '
            'drawn for all tasks alike here; give it a DefaultSampler or an '
            'InfiniteSampler.')
    if type(batches) is not BatchSampler:
        print_log(
            f"The loader of the task '{task}' has a "
            f'{type(batches).__name__}, which is not used: its batches are '
            'of any samples.',
            logger='current',
            level=logging.WARNING)
    return sampler.shuffle
