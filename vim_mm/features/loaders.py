# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Loaders of a run's training images, read outside of its loop."""

from mmengine.dataset import DefaultSampler
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from vim_mm.datasets import SoftOnly

#: Samplers whose one stream of indices never ends.
ENDLESS = ('InfiniteSampler', 'MultiSourceSampler')


def finite(dataloader: DataLoader) -> DataLoader:
    """The labelled images once: a finite sampler replaces an endless one.

    Its one stream of indices would never end, and cannot be left halfway
    without ending it for the training that follows. Images that a student
    learns from by its teacher alone (:class:`vim_mm.SoftOnly`) are left out.
    A last batch that is not full is dropped where the loader drops it, unless
    it is the only one: an endless sampler fills it with images seen before.

    Raises:
        ValueError: If there are no others.
    """
    batches, dataset = dataloader.batch_sampler, labelled(dataloader.dataset)
    if dataset is dataloader.dataset and not is_endless(dataloader):
        return _apart(dataloader)
    sampler = DefaultSampler(dataset,
                             getattr(batches.sampler, 'shuffle', True),
                             getattr(batches.sampler, 'seed', None))
    fills_one = len(sampler) >= batches.batch_size
    return _sampled(dataloader, sampler, fills_one and _drops(dataloader))


def _apart(dataloader: DataLoader) -> DataLoader:
    """A loader of the same batches that does not know a run's step.

    The one that a training loop reads begins where the loop is.
    """
    if not hasattr(dataloader, 'steps'):
        return dataloader
    return DataLoader(
        dataloader.dataset,
        batch_sampler=dataloader.batch_sampler,
        num_workers=dataloader.num_workers,
        collate_fn=dataloader.collate_fn,
        worker_init_fn=dataloader.worker_init_fn)


def in_one_order(dataloader: DataLoader) -> DataLoader:
    """The images in an order that does not depend on the seed of a run."""
    if not getattr(dataloader.batch_sampler.sampler, 'shuffle', False):
        return dataloader
    return _sampled(dataloader, DefaultSampler(dataloader.dataset, seed=0),
                    _drops(dataloader))


def _drops(dataloader: DataLoader) -> bool:
    return getattr(dataloader.batch_sampler, 'drop_last', False)


def _sampled(dataloader: DataLoader, sampler: DefaultSampler,
             drop_last: bool) -> DataLoader:
    return DataLoader(
        sampler.dataset,
        batch_size=dataloader.batch_sampler.batch_size,
        sampler=sampler,
        num_workers=dataloader.num_workers,
        collate_fn=dataloader.collate_fn,
        worker_init_fn=dataloader.worker_init_fn,
        drop_last=drop_last)


def is_endless(dataloader: DataLoader) -> bool:
    """Whether a loader's one stream of indices never ends."""
    sampler = getattr(dataloader.batch_sampler, 'sampler', None)
    return any(kind.__name__ in ENDLESS for kind in type(sampler).__mro__)


def labelled(dataset: Dataset) -> Dataset:
    """The parts of a data set whose annotations are learned from.

    Raises:
        ValueError: If there are none.
    """
    parts = getattr(dataset, 'datasets', [dataset])
    kept = [part for part in parts if not isinstance(part, SoftOnly)]
    if not kept:
        raise ValueError('No image of the training set has a label to learn '
                         'from, as all are SoftOnly; add labelled ones, or '
                         'leave out the hook that learns before training.')
    if len(kept) == len(parts):
        return dataset
    return kept[0] if len(kept) == 1 else ConcatDataset(kept)


def check_filled(dataloader: DataLoader) -> None:
    """Refuse a data set that fills no batch.

    Raises:
        ValueError: If the loader has no batch.
    """
    if not len(dataloader) and not is_endless(dataloader):
        raise ValueError('The training images do not fill one batch of '
                         f'{dataloader.batch_sampler.batch_size}, and '
                         'train_dataloader drops the last; set '
                         'train_dataloader.drop_last=False.')
