# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Features of a frozen backbone, computed once and used many times."""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, Dict, Iterator, List, Optional, Sequence

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.model import BaseModel
from mmengine.utils import apply_to
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from vim_mm.models.class_counts import check_labels
from vim_mm.models.layouts import Streams
from vim_mm.utils.progress import track
from .loaders import check_filled, finite
from .places import Memory, Room, agreed_length, size_of


@dataclass
class CachedBatch:
    """The inputs of a head for one batch.

    Attributes:
        features (tuple): The backbone's output, on CPU.
        data_samples (list): Annotations after preprocessing, on CPU.
        input_shape (torch.Size): Shape of the batch of images.
    """
    features: tuple
    data_samples: list
    input_shape: torch.Size


def to_device(data: object, device: torch.device) -> object:
    """Move all tensors and data samples of a nested structure."""
    if isinstance(data, Streams):
        return data.map(lambda stream: to_device(stream, device))
    return apply_to(data, lambda x: hasattr(x, 'to'), lambda x: x.to(device))


def preprocess(model: BaseModel, data: dict) -> dict:
    """Collate, move and normalise one batch as the model's training does.

    Raises:
        ValueError: If it has labels that the model's head has no place for.
    """
    check_labels(model, data)
    return model.data_preprocessor(data, training=True)


@contextmanager
def unmixed(model: BaseModel) -> Iterator[None]:
    """Within this context images are not mixed (Mixup, CutMix).

    A mixed image has no class of its own, though it keeps one's label.
    """
    preprocessor = model.data_preprocessor
    mixes = getattr(preprocessor, 'batch_augments', None)
    if type(mixes).__name__ != 'RandomBatchAugment':
        yield
        return
    preprocessor.batch_augments = None
    try:
        yield
    finally:
        preprocessor.batch_augments = mixes


@torch.no_grad()
def cache_features(model: BaseModel,
                   dataloader: DataLoader,
                   views: int = 1,
                   max_batches: Optional[int] = None,
                   change: Optional[Callable[[dict], dict]] = None,
                   place: Optional[Memory] = None) -> List[CachedBatch]:
    """Run the backbone over a data set once (or ``views`` times).

    Random augmentation is frozen at what the pass drew, labels alike, so
    features and annotations always belong together; more ``views`` hold more
    of it. Where all would not fit, less is cached, and a line says so.

    Args:
        model (BaseModel): An mm* model with a ``backbone``, not wrapped.
        dataloader (DataLoader): Of the training set.
        views (int): Number of passes. Defaults to 1.
        max_batches (int, optional): Stop a pass after so many batches.
        change (Callable, optional): What is done to each batch as the
            pipeline gives it. Defaults to None.
        place (Memory, optional): Where the features are kept. Defaults to
            None, which is memory.

    Returns:
        list[CachedBatch]: On CPU, in the order of the passes; as many in all
        processes.

    Raises:
        ValueError: If there is no batch, not even room for one, or nothing
            is labelled.
    """
    place = place or Memory()
    loader = finite(dataloader)
    check_filled(loader)
    limit = len(loader) if max_batches is None else max_batches
    room = Room(place, views, min(limit, len(loader)))
    training, cached = model.training, []
    model.eval()
    passes = track(
        _passes(loader, room), 'Caching features', room.views * room.batches)
    for data in passes:
        batch = preprocess(model, change(data) if change else data)
        features = to_device(
            model.backbone(batch['inputs']), torch.device('cpu'))
        samples = to_device(batch['data_samples'], torch.device('cpu'))
        if not room.take(size_of((features, samples))):
            break
        cached.append(
            CachedBatch(*place.keep(features, samples), batch['inputs'].shape))
    model.train(training)
    _check_labelled(model, cached)
    del cached[agreed_length(len(cached)):]
    return cached


def _check_labelled(model: BaseModel, cached: List[CachedBatch]) -> None:
    """Refuse a data set in which nothing is labelled, in any process."""
    device = next(model.parameters()).device
    labelled = torch.tensor(int(any(
        check_labels(model, dict(data_samples=batch.data_samples), judged=True)
        for batch in cached)), device=device)
    all_reduce(labelled, op='max')
    if not labelled:
        raise ValueError(
            'Nothing in the training set is labelled: no image has a class, '
            'no box is left, or all pixels are ignored, so a head would learn '
            'nothing; look at the annotations, and at what the pipeline makes '
            'of them.')


def _passes(loader: DataLoader, room: Room) -> Iterator[dict]:
    """The batches of all passes; how many there are is known later."""
    done = 0
    while done < room.views:
        for number, data in enumerate(loader, 1):
            yield data
            if number >= room.batches:
                break
        done += 1


def split(batch: CachedBatch) -> List[CachedBatch]:
    """The images of a batch, each as a batch of its own."""
    return [
        CachedBatch(
            tuple(level[i:i + 1] for level in batch.features), [sample],
            torch.Size((1, *batch.input_shape[1:])))
        for i, sample in enumerate(batch.data_samples)
    ]


def alike(images: Sequence[CachedBatch]) -> List[CachedBatch]:
    """Images in batches, those of one shape together."""
    groups: Dict[tuple, List[CachedBatch]] = {}
    for image in images:
        groups.setdefault(tuple(image.input_shape), []).append(image)
    return [
        CachedBatch(
            tuple(map(torch.cat, zip(*(image.features for image in group)))),
            [image.data_samples[0] for image in group],
            torch.Size((len(group), *shape[1:])))
        for shape, group in groups.items()
    ]


@contextmanager
def replay(model: BaseModel, features: tuple) -> Iterator[None]:
    """Within this context the model's backbone returns ``features``."""
    backbone = model.backbone
    backbone.forward = lambda inputs: features
    try:
        yield
    finally:
        del backbone.forward


def cached_loss(model: BaseModel, batch: CachedBatch) -> Tensor:
    """The training loss of any mm* model on cached features.

    Args:
        model (BaseModel): Not wrapped, with ``loss(inputs, data_samples)``.
        batch (CachedBatch): Its features and annotations.

    Returns:
        Tensor: The summed loss, a scalar.
    """
    device = next(model.parameters()).device
    # heads may read the shape of images, not their pixels
    inputs = torch.zeros((), device=device).expand(batch.input_shape)
    with replay(model, to_device(batch.features, device)):
        losses = model.loss(inputs, to_device(batch.data_samples, device))
    return model.parse_losses(losses)[0]


@contextmanager
def steady_norms(model: nn.Module) -> Iterator[None]:
    """Within this context no batch norm fails that sees one value a channel.

    So it does where it comes after pooling and the last batch of a pass is one
    image. That has no statistics, so the norm uses its running ones.
    """
    norms = [
        part for part in model.modules()
        if isinstance(part, _BatchNorm) and part.training
        # together the processes see more
        and not (isinstance(part, nn.SyncBatchNorm) and get_world_size() > 1)
    ]
    handles = [norm.register_forward_pre_hook(_steady) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for norm in norms:
            norm.train()


def _steady(norm: nn.Module, inputs: tuple) -> None:
    norm.train(inputs[0].numel() > inputs[0].shape[1])
