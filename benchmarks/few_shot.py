# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Few images of a config, in memory, and a head in closed form on them."""

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel
from mmengine.registry import DATASETS
from mmengine.runner import set_random_seed
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vim_mm.apis.fitting import unfused_model
from vim_mm.engine.model_parts import extra_tokens
from vim_mm.evaluation.ridge import balanced_accuracy, ridge_scores
from vim_mm.features.cache import CachedBatch, preprocess, to_device, unmixed
from vim_mm.features.rows import rows_of
from vim_mm.utils.data import check_data

Rows = Tuple[Tensor, Tensor, Tensor]


class Loaded(Dataset):
    """Samples in memory, as a data set has given them once."""

    def __init__(self, samples: Sequence[dict]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        # preprocessors write into samples
        return deepcopy(self.samples[index])


def load_pictures(
        cfg: Config,
        num_test: int) -> Tuple[List[dict], List[dict]]:
    """The few-shot training set, and test images that it does not hold.

    Test images take the training pipeline, in which the annotations are
    sure to fit the pixels.

    Raises:
        ValueError: If a test image is one of the training set.
    """
    check_data(cfg, ('train_dataloader', 'test_dataloader'))
    train, test = (deepcopy(cfg[f'{part}_dataloader'].dataset)
                   for part in ('train', 'test'))
    if 'pipeline' in train:
        test.pipeline = train.pipeline
    set_random_seed(0)
    train = DATASETS.build(train)
    pool = [train[i] for i in range(len(train))]
    test = DATASETS.build(test)
    order = torch.randperm(
        len(test), generator=torch.Generator().manual_seed(0))
    tested = [test[i] for i in order[:num_test].sort().values.tolist()]
    paths = [{s['data_samples'].get('img_path') for s in part} - {None}
             for part in (pool, tested)]
    if shared := sorted(set.intersection(*paths)):
        raise ValueError(f'{len(shared)} test images are training images '
                         f'as well, such as {shared[0]!r}; test on others.')
    return pool, tested


def draw(pool: Sequence[dict], num: int, seed: int) -> List[int]:
    """Ordered indices of a random subset, with classes in equal numbers."""
    order = torch.randperm(
        len(pool), generator=torch.Generator().manual_seed(seed)).tolist()
    seen: Counter = Counter()
    turns = []
    for index in order:
        sample = pool[index]['data_samples']
        label = int(sample.gt_label) if 'gt_label' in sample else index
        turns.append((seen[label], index))
        seen[label] += 1
    turns.sort(key=lambda turn: turn[0])  # stable: else as shuffled
    return sorted(index for _, index in turns[:num])


def scorable(samples: Sequence[dict]) -> bool:
    """Whether halves of the images can share two classes."""
    labels = [s['data_samples'] for s in samples]
    if 'gt_label' not in labels[0]:
        return len(samples) > 1
    counts = Counter(int(each.gt_label) for each in labels)
    return sum(count > 1 for count in counts.values()) > 1


class FewShot:
    """A config's model with all its modules, and the images of its task.

    Args:
        cfg (Config): A downstream config.
        zoo (str, optional): Directory of the zoo; the config's when None.
        num_test (int): Number of test images.
        batch_size (int): Images in a pass.

    Attributes:
        passes (int): Images sent through the trunk so far.
        backward (int): How many of them with a graph, to be sent back.

    Raises:
        ValueError: If there are fewer modules than two.
    """

    def __init__(self, cfg: Config, zoo: Optional[str], num_test: int,
                 batch_size: int) -> None:
        backbone = cfg.model.backbone
        if len(backbone.get('modules', ())) < 2:
            raise ValueError('Nothing can be fused of fewer modules than two; '
                             'name them in `model.backbone.modules`.')
        self.pool, self.tested = load_pictures(cfg, num_test)
        self.batch_size = batch_size
        self.model = unfused_model(cfg, zoo or backbone.zoo,
                                   list(backbone.modules))
        self.backbone = self.model.backbone
        self.names = self.backbone.bank.names
        if getattr(self.model, 'neck', None) is not None:
            self.model.neck.fusion = None  # weights are the backbone's here
        self.settings = next(
            (hook for hook in cfg.get('custom_hooks') or []
             if str(hook['type']).endswith('ScoreGatesHook')), {})
        self.extra = extra_tokens(self.model,
                                  self.settings.get('num_extra_tokens'))
        self.passes = self.backward = 0
        self.backbone.trunk.register_forward_pre_hook(self._count)

    def _count(self, _: Any, inputs: Tuple[Tensor]) -> None:
        self.passes += len(inputs[0])
        self.backward += len(inputs[0]) * torch.is_grad_enabled()

    @torch.no_grad()
    def rows(self, samples: Sequence[dict]) -> Rows:
        """Features, classes and images (as indices) of the rows."""
        parts, size = [], self.batch_size
        for start in range(0, len(samples), size):
            data = pseudo_collate(deepcopy(samples[start:start + size]))
            with unmixed(self.model):
                batch = preprocess(self.model, data)
            features = self.backbone(batch['inputs'])
            x, y, picture = rows_of([
                CachedBatch(*to_device(
                    (features, batch['data_samples']), torch.device('cpu')),
                            batch['inputs'].shape)
            ], self.extra)
            parts.append((x, y, picture + start))
        return tuple(map(torch.cat, zip(*parts)))

    def as_runner(self, samples: Sequence[dict],
                  seed: int) -> 'Asked':
        """A runner of these images."""
        loader = DataLoader(
            Loaded(samples),
            batch_size=self.batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
            collate_fn=pseudo_collate)
        return Asked(self.model, loader, seed)


@dataclass(eq=False)
class Asked:
    """All that hooks before training ask of a runner."""
    model: BaseModel
    train_dataloader: DataLoader
    seed: int
    iter: int = 0
    hooks: tuple = ()
    message_hub: MessageHub = field(
        default_factory=MessageHub.get_current_instance)
    logger: MMLogger = field(default_factory=MMLogger.get_current_instance)


def accuracy(train: Rows, test: Rows) -> float:
    """Balanced accuracy on test rows of the head that training rows give."""
    classes, y = train[1].unique(return_inverse=True)
    scores = ridge_scores(train[0].double(),
                          F.one_hot(y, len(classes)).double(),
                          test[0].double(), 1.)
    return balanced_accuracy(classes[scores.argmax(1)], test[1])
