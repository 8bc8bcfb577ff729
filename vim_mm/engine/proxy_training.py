# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The first stage of TDMR: a proxy space learns a task."""

import math
import time
from typing import Callable, Dict, Iterator, List, Optional, Tuple

import torch
import torch.nn.functional as F
from mmengine.dist import broadcast
from mmengine.registry import MODELS, OPTIMIZERS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Dataset, Subset

from vim_mm.datasets import Views
from vim_mm.features.cache import preprocess, unmixed
from vim_mm.features.places import Memory, Room, size_of
from vim_mm.features.rows import IGNORED, patch_labels
from vim_mm.features.store import FeatureStore
from vim_mm.models.distillers import TDMRDistiller
from vim_mm.models.recorder import tapping
from vim_mm.utils.progress import track
from .stopping import stop_if_asked

#: Gives features of all foundation models for indices of the data set.
Indexed = Callable[[Tensor], Dict[str, Tensor]]


class Stored:
    """Features of views by their index in the data set.

    Args:
        dataset (Views): The training set.
        stores (Mapping[str, FeatureStore]): Filled, by foundation model.
    """

    def __init__(self, dataset: Views, stores: Dict[str,
                                                    FeatureStore]) -> None:
        self.stores = stores
        self.keys = dataset.keys()

    def __call__(self, indices: Tensor) -> Dict[str, Tensor]:
        keys = [self.keys[index] for index in indices.tolist()]
        return {
            name: store.read([store.known(*key) for key in keys])
            for name, store in self.stores.items()
        }


class _AllInMemory(Memory):
    thins = False
    instead = 'give ProxyHook a `store`, a folder on a disk'


class InMemory:
    """Features of images by their index in the data set, computed now.

    Args:
        runner (Runner): The run.
        model (TDMRDistiller): With the foundation models.
        dataset (Dataset): The training set.

    Raises:
        ValueError: If there is no room for all of them.
    """

    def __init__(self, runner: Runner, model: TDMRDistiller,
                 dataset: Dataset) -> None:
        parts, indices = [], list(range(len(dataset)))
        size = runner.train_dataloader.batch_sampler.batch_size
        room = Room(_AllInMemory(), 1, -(-len(indices) // size))
        for _, data in batches(runner, model, dataset, indices):
            parts.append(
                {name: x.cpu() for name, x in model.look(**data).items()})
            room.take(size_of(parts[-1]))
        self.features = {
            name: torch.cat([part[name] for part in parts])
            for name in parts[0]
        }

    def __call__(self, indices: Tensor) -> Dict[str, Tensor]:
        return {name: x[indices] for name, x in self.features.items()}


def batches(runner: Runner, model: TDMRDistiller, dataset: Dataset,
            indices: List[int]) -> Iterator[Tuple[List[int], dict]]:
    """Images as the training loads them, in this order, and preprocessed."""
    loader = runner.train_dataloader
    size = loader.batch_sampler.batch_size
    part = DataLoader(
        Subset(dataset, indices),
        batch_size=size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        # its seed is drawn, and the run's numbers are not to shift
        generator=torch.Generator())
    with unmixed(model):
        for number, data in enumerate(
                track(part, 'Looking at images', len(part))):
            yield indices[number * size:(number + 1) * size], preprocess(
                model, data)


def train_proxy(runner: Runner, model: TDMRDistiller, features: Indexed,
                epochs: int, batch_size: int, optimizer: dict, domain: float,
                domain_loss: dict) -> Dict[str, float]:
    """Train R and q on the features of the training set.

    Every process does the same on all of it, which costs as much as an MLP.

    Args:
        runner (Runner): The run.
        model (TDMRDistiller): The distiller.
        features (Callable): Gives features by index.
        epochs (int): Epochs.
        batch_size (int): Images a step.
        optimizer (dict): Its config.
        domain (float): Weight of the domain loss.
        domain_loss (dict): Its config.

    Returns:
        dict[str, float]: ``seconds``, ``params``, and the ``loss`` and
        ``accuracy`` of the last epoch on the training set.
    """
    start = time.perf_counter()
    dataset, proxy = runner.train_dataloader.dataset, model.proxy
    device = next(model.parameters()).device

    def tokens(indices: Tensor) -> Tensor:
        return model.tokens({
            name: x.to(device).float()
            for name, x in features(indices).items()
        })

    everything = torch.arange(len(dataset)).split(batch_size)
    proxy.fit(map(tokens, everything))
    report = dict(params=sum(p.numel() for p in proxy.parameters()))
    if epochs:
        labels = labels_of(runner, model, dataset,
                           features(torch.zeros(1, dtype=torch.long)))
        starts, criterion = None, None
        if domain:
            starts = student_features(runner, model, features)
            criterion = MODELS.build(domain_loss)
        learns = [p.requires_grad for p in proxy.parameters()]
        proxy.requires_grad_(True).train()
        report.update(
            _epochs(runner, proxy, tokens, labels, epochs, batch_size,
                    optimizer, starts, criterion, domain))
        for param, flag in zip(proxy.parameters(), learns):
            param.requires_grad_(flag)
        model.train()
    proxy.fitted.fill_(1)
    for tensor in (*proxy.parameters(), *proxy.buffers()):
        broadcast(tensor.data)
    report['seconds'] = time.perf_counter() - start
    runner.logger.info('ProxyHook: ' + ', '.join(
        f'{name} {value:.4g}' for name, value in report.items()))
    return report


def _epochs(runner: Runner, proxy: nn.Module, tokens: Callable,
            labels: Tensor, epochs: int, batch_size: int, optimizer: dict,
            starts: Optional[Tensor], criterion: Optional[nn.Module],
            domain: float) -> Dict[str, float]:
    num, device = len(labels), labels.device
    optimizer = OPTIMIZERS.build(
        dict(optimizer, params=list(proxy.parameters())))
    parts = -(-num // batch_size)
    schedule = CosineAnnealingLR(optimizer, epochs * parts)
    # a generator of its own: the run's augmentation is not shifted
    order = torch.Generator().manual_seed(runner.seed or 0)
    for epoch in range(epochs):
        total, right, seen = 0., 0., 0
        # of about one size: norms and alignments need several images
        for indices in torch.randperm(
                num, generator=order).tensor_split(parts):
            space, target = proxy(tokens(indices)), labels[indices].flatten()
            logits = proxy.classifier(space).flatten(0, 1)
            loss = F.cross_entropy(logits, target, ignore_index=IGNORED)
            if criterion is not None:
                loss = loss + domain * criterion(
                    space, starts[indices].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(indices)
            right += (logits.argmax(1) == target).sum()
            seen += (target != IGNORED).sum()
        stop_if_asked()
        if not math.isfinite(total):
            raise ValueError(f'The loss of ProxyHook is {float(total)} in '
                             f'epoch {epoch + 1}; lower the `lr` of its '
                             '`optimizer`.')
    optimizer.zero_grad(set_to_none=True)
    return dict(loss=float(total) / num, accuracy=float(right / seen))


def labels_of(runner: Runner, model: TDMRDistiller, dataset: Dataset,
              example: Dict[str, Tensor]) -> Tensor:
    """Classes of each image, (N, 1), or of each place of its map, (N, L).

    Args:
        runner (Runner): The run.
        model (TDMRDistiller): The distiller.
        dataset (Dataset): The training set.
        example (dict[str, Tensor]): Features of one of its images.

    Raises:
        ValueError: If an image has not exactly one class.
    """
    labels = None if model.reads_maps else _classes(dataset)
    if labels is None:
        grid = next(iter(example.values())).shape[-2:]
        indices = list(range(len(dataset)))
        labels = [
            patch_labels(sample.cpu(), grid, data['inputs'].shape[-2:])
            if model.reads_maps else sample.gt_label.cpu()
            for _, data in batches(runner, model, dataset, indices)
            for sample in data['data_samples']
        ]
    if not model.reads_maps and any(len(label) != 1 for label in labels):
        raise ValueError('A proxy space learns images of one class each; some '
                         'of the training set have several, or none.')
    return torch.stack(labels).to(next(model.parameters()).device)


def _classes(dataset: Dataset) -> Optional[List[Tensor]]:
    """Classes that a data set knows without loading an image, or None."""
    try:
        return [
            torch.as_tensor(dataset.get_data_info(index)['gt_label']).flatten()
            for index in range(len(dataset))
        ]
    except (AttributeError, KeyError):
        return None


@torch.no_grad()
def student_features(runner: Runner, model: TDMRDistiller,
                     features: Indexed) -> Tensor:
    """What the student's last layer reads before any training, (N, L, n)."""
    dataset, parts = runner.train_dataloader.dataset, []
    model.student.eval()
    for indices, data in batches(runner, model, dataset,
                                 list(range(len(dataset)))):
        with tapping({'last': model.classifier}, inputs=True) as seen:
            model.student(data['inputs'], data['data_samples'], mode='tensor')
        like = next(iter(features(torch.tensor(indices)).values()))
        parts.append(model.own_tokens(seen['last'][0].args[0], like).cpu())
    return torch.cat(parts)
