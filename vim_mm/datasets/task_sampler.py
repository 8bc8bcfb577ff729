# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Dict, Iterator, List, Mapping, Tuple

import numpy as np
from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from vim_mm.utils.seeds import ORDER, SAMPLE, TASKS, stream
from .task_dataset import Place


class TaskBatchSampler(Sampler):
    """One task a step, drawn by its weight; the same on all processes.

    It has no state: what a step runs, which samples, and how each of them is
    augmented, is a function of the seed and the step. So a run that is
    resumed goes on at its step without loading what was trained.

    A task's data set is gone through epoch by epoch, shuffled anew in each.
    An epoch has whole batches, those of all processes together; the last one
    is filled from the beginning of the same epoch. Each process has a part of
    its own.

    Args:
        sizes (Mapping[str, int]): Length of each task's data set.
        batch_sizes (Mapping[str, int]): Samples of each task in a step and
            process.
        weights (Mapping[str, float]): How often each task runs, relative to
            the others.
        num_steps (int): Steps of the whole run.
        shuffle (Mapping[str, bool]): Whether a task's samples are shuffled.
    """

    #: mmengine's DistSamplerSeedHook looks for epochs to set.
    sampler = None

    def __init__(self, sizes: Mapping[str, int],
                 batch_sizes: Mapping[str, int], weights: Mapping[str, float],
                 num_steps: int, shuffle: Mapping[str, bool]) -> None:
        self.sizes = dict(sizes)
        self.tasks = list(sizes)
        self.batch_sizes = dict(batch_sizes)
        #: what mmengine's strategies are told; steps differ
        self.batch_size = max(batch_sizes.values())
        self.num_steps = num_steps
        self.shuffle = dict(shuffle)
        self.rank, self.world_size = get_dist_info()
        values = np.array([weights[task] for task in self.tasks], float)
        self._shares = np.cumsum(values) / values.sum()
        self.seek(0, 0)

    def seek(self, seed: int, step: int) -> None:
        """Let the next iteration begin at a step.

        Args:
            seed (int): Of the run, the same on all processes.
            step (int): Steps that have been trained.
        """
        self.seed, self.start = seed, step
        drawn = stream(seed, TASKS).random(self.num_steps)
        # a share of zero is never drawn, nor is one past the end
        self._tasks = np.searchsorted(self._shares, drawn, side='right')
        self._counts = np.zeros(self.num_steps, int)
        for index in range(len(self.tasks)):
            mine = self._tasks == index
            self._counts[mine] = np.arange(mine.sum())
        self._orders: Dict[str, Tuple[int, np.ndarray]] = {}

    def task_at(self, step: int) -> str:
        """The task of a step."""
        return self.tasks[self._tasks[step]]

    def batch_at(self, step: int) -> List[Place]:
        """This process's samples of a step."""
        task, count = self.task_at(step), int(self._counts[step])
        size, share = self.sizes[task], self.batch_sizes[task]
        whole = share * self.world_size
        epoch, batch = divmod(count, -(-size // whole))
        order, first = self._order(task, epoch), share * self.rank
        return [
            Place(task, int(order[(batch * whole + place) % size]),
                  (self.seed, SAMPLE, step, place))
            for place in range(first, first + share)
        ]

    def _order(self, task: str, epoch: int) -> np.ndarray:
        if not self.shuffle[task]:
            return np.arange(self.sizes[task])
        known, order = self._orders.get(task, (None, None))
        if known != epoch:
            index = self.tasks.index(task)
            order = stream(self.seed, ORDER, index,
                           epoch).permutation(self.sizes[task])
            self._orders[task] = epoch, order
        return order

    def __iter__(self) -> Iterator[List[Place]]:
        for step in range(self.start, self.num_steps):
            yield self.batch_at(step)

    def __len__(self) -> int:
        return self.num_steps
