# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Random numbers of a run as a function of its seed and its step.

mmengine's loops draw numbers that depend on all that was drawn before: in the
process, and in each worker of a loader. So a resumed run would draw others.
Here a step's numbers are its own, and so are those of the batch it loads; a
run that is resumed goes on at its batch, also within an epoch, and equals one
that was never stopped, with any number of workers.
"""

from itertools import islice
from typing import Any, Callable, Iterator, Optional

from mmengine.dist import get_rank
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from vim_mm.utils.keyed import KeyedBatch
from vim_mm.utils.seeds import ORDER, SAMPLE, seeded


def go_on_within_epochs() -> None:
    """Let mmengine's loops begin where a run was. Idempotent."""
    EpochBasedTrainLoop.batches_done = 0
    EpochBasedTrainLoop.run_epoch = _run_epoch
    if not hasattr(_InfiniteDataloaderIterator, 'skip_iter'):
        # mmengine 0.10 loads all that it skips, and the first batch before
        # it is known where the run goes on
        _InfiniteDataloaderIterator.__init__ = _wait
        _InfiniteDataloaderIterator.__next__ = _begin(
            _InfiniteDataloaderIterator.__next__)
        IterBasedTrainLoop.run = _run
    _InfiniteDataloaderIterator.skip_iter = _skip


def count_steps(loop: BaseLoop) -> None:
    """Give each batch that a loop loads random numbers of its own.

    Args:
        loop (BaseLoop): A training loop, about to load its first batch.
    """
    loader = loop.dataloader
    if isinstance(loader, _StepLoader):
        return
    if loader.batch_sampler is None or isinstance(loader.dataset,
                                                  IterableDataset):
        return
    kind = type(loader)
    loader.steps = StepBatches(loader.batch_sampler, loop)
    loader.__class__ = type(kind.__name__, (_StepLoader, kind), {})


class _StepLoader(DataLoader):
    """A loader whose batches know their steps."""

    @property
    def _index_sampler(self) -> 'StepBatches':
        return self.steps


class StepBatches:
    """The batches of indices of a loader, each with a key of its step.

    Args:
        batches (Iterable): The loader's batch sampler.
        loop (BaseLoop): The loop that trains on them.
    """

    def __init__(self, batches: Any, loop: BaseLoop) -> None:
        self.batches = batches
        self.loop = loop
        self._waiting: Optional[Iterator] = None

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[KeyedBatch]:
        loop = self.loop
        batches, self._waiting = self._waiting, None
        if batches is None:
            number = loop.epoch
            if isinstance(loop, IterBasedTrainLoop):
                number = loop.dataloader_iterator._epoch
            batches = self._pass(number)
        if isinstance(loop, EpochBasedTrainLoop):
            batches = islice(batches, loop.batches_done, None)
        for step, indices in enumerate(batches, loop.iter):
            key = loop.runner.seed, SAMPLE, get_rank(), step
            yield KeyedBatch(indices, key)

    def skip(self, count: int) -> int:
        """Let the next batch be another one, without loading those before.

        Args:
            count (int): Batches to leave out.

        Returns:
            int: Number of the pass through the data that it is in.
        """
        number, batches = 0, self._pass(0)
        for _ in range(count):
            try:
                next(batches)
            except StopIteration:
                number += 1
                self._set_epoch(number)
                batches = self._pass(number)
                next(batches)
        self._waiting = batches
        return number

    def _pass(self, number: int) -> Iterator[list]:
        """One pass through the data, in an order of its own."""
        with seeded(self.loop.runner.seed, ORDER, number):
            batches = iter(self.batches)
            first = next(batches, None)
        if first is not None:
            yield first
            yield from batches

    def _set_epoch(self, number: int) -> None:
        sampler = getattr(self.batches, 'sampler', None)
        if hasattr(sampler, 'set_epoch'):
            sampler.set_epoch(number)


def _run_epoch(loop: EpochBasedTrainLoop) -> None:
    """As mmengine's, from the first batch that was not trained."""
    loop.runner.call_hook('before_train_epoch')
    loop.runner.model.train()
    for index, batch in enumerate(loop.dataloader, loop.batches_done):
        loop.batches_done = index + 1
        loop.run_iter(index, batch)
    loop.batches_done = 0
    loop.runner.call_hook('after_train_epoch')
    loop._epoch += 1


def _run(loop: IterBasedTrainLoop) -> nn.Module:
    """As that of later mmengine, which skips without loading."""
    runner = loop.runner
    for point in ('before_train', 'before_train_epoch'):
        runner.call_hook(point)
    loop.dataloader_iterator.skip_iter(loop.iter)
    while loop.iter < loop.max_iters and not loop.stop_training:
        runner.model.train()
        loop.run_iter(next(loop.dataloader_iterator))
        loop._decide_current_val_interval()
        due = loop.iter % loop.val_interval == 0 or loop.iter == loop.max_iters
        if due and runner.val_loop is not None and (
                loop.iter >= loop.val_begin):
            runner.val_loop.run()
    for point in ('after_train_epoch', 'after_train'):
        runner.call_hook(point)
    return runner.model


def _wait(batches: _InfiniteDataloaderIterator,
          dataloader: DataLoader) -> None:
    """Begin no loader yet."""
    batches._dataloader, batches._iterator = dataloader, None
    batches._epoch = 0


def _begin(take: Callable) -> Callable:
    """The next batch, of a loader that begins with the first."""

    def taken(batches: _InfiniteDataloaderIterator) -> Any:
        if batches._iterator is None:
            batches._iterator = iter(batches._dataloader)
        return take(batches)

    return taken


def _skip(batches: _InfiniteDataloaderIterator, count: int) -> None:
    """As mmengine's, for every sampler, and without loading what it skips."""
    loader = batches._dataloader
    if isinstance(loader, _StepLoader):
        if count >= loader.steps.loop.max_iters:
            return  # it has ended
        batches._epoch = loader.steps.skip(count)
    else:  # its batches come from no sampler
        for _ in range(count):
            batches._next_data()


go_on_within_epochs()
