# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Features of a task's images with its modules at any weights."""

from contextlib import contextmanager
from itertools import islice
from typing import Callable, Dict, Iterator, List, Optional, Set, Tuple, Union

import torch
from mmengine.model import BaseModel
from torch import Tensor
from torch.utils.data import DataLoader

from vim_mm.utils.progress import track
from .cache import CachedBatch, preprocess, to_device, unmixed
from .loaders import check_filled, finite, in_one_order
from .rows import feature_rows, kind_of, label_rows

#: Name of the entry without modules; evidence uses it too.
TRUNK = 'frozen trunk'
#: Name of the entry with all modules, each at an equal share.
UNIFORM = 'uniform weights'
#: Name of the entry with the weights that were found.
FUSED = 'recommended fusion'
#: Rows that are scored at most: patches of all images are many.
MAX_ROWS = 3000
#: Bytes of images and features that are kept at most.
MAX_BYTES = 4 * 2**30
#: Features that differ by less than this share are the same.
ROUNDING = 1e-4

#: Of each module, in order: what it was trained at is one.
Weights = Tuple[float, ...]


class ModuleFeatures:
    """What a backbone gives for some images, whatever its modules weigh.

    Images are read and preprocessed once, so that all weights see the same
    augmentation. The bare trunk runs once. Where features are linear in the
    weights, as those of modules beside the trunk, of streams weighed in a
    neck and of modules in the last layer alone, each module runs once, too,
    and all else is computed from that; whether they are is tried on the first
    batch. Else other weights take another pass.

    Args:
        model (BaseModel): Not wrapped, in eval mode, with the modules in its
            backbone's bank.
        dataloader (DataLoader): Of the training set.
        modules (list[str]): Their names.
        run (Callable): From a batch of images to their features, one entry a
            level, with modules as they are weighed.
        weigh (Callable): Weighs the modules from now on.
        most (int): How many modules ``weigh`` can weigh at once; zero if it
            is not to be called unasked.
        num_extra_tokens (int): Class and register tokens, for pooling.
        max_pictures (int, optional): Stop after so many, in whole batches,
            at least one. Defaults to None.

    Attributes:
        labels (Tensor), picture (Tensor): See :class:`LabelledRows`.
        is_exact (bool): Whether features are linear in the weights.

    Raises:
        ValueError: If the loader has no batch.
    """

    @torch.no_grad()
    def __init__(self,
                 model: BaseModel,
                 dataloader: DataLoader,
                 modules: List[str],
                 run: Callable[[Tensor], tuple],
                 weigh: Callable[[Weights], None],
                 most: int,
                 num_extra_tokens: int,
                 max_pictures: Optional[int] = None) -> None:
        self.model, self.modules = model, list(modules)
        self.run, self.weigh = run, weigh
        self.most = min(most, len(modules))
        self.num_extra_tokens = num_extra_tokens
        self.bare: Weights = (0., ) * len(modules)
        self.is_exact = False
        self._images_run = 0
        self._asked: Set[Optional[Weights]] = set()
        self._inputs: List[Tensor] = []
        self._trunk: List[CachedBatch] = []
        #: by batch and weights
        self._known: Dict[Tuple[int, Weights], tuple] = {}
        self._read(dataloader, max_pictures)
        self.num_pictures = sum(map(len, self._inputs))
        rows = label_rows(self._trunk, MAX_ROWS)
        self.labels, self.picture, self._kept = rows

    def _read(self, dataloader: DataLoader,
              max_pictures: Optional[int]) -> None:
        """Run the bare trunk over the images."""
        dataloader = in_one_order(finite(dataloader))
        check_filled(dataloader)
        total, left = len(dataloader), MAX_BYTES
        if max_pictures is not None:
            size = dataloader.batch_sampler.batch_size
            total = min(total, max(1, -(-max_pictures // size)))
        for data in track(
                islice(dataloader, total), 'Reading images', total):
            with unmixed(self.model):
                batch = preprocess(self.model, data)
            with self._counted(), self.model.backbone.only():
                features = tuple(self.model.backbone(batch['inputs']))
            features, samples, inputs = to_device(
                (features, batch['data_samples'], batch['inputs']),
                torch.device('cpu'))
            self._inputs.append(inputs)
            self._trunk.append(CachedBatch(features, samples, inputs.shape))
            if len(self._inputs) == 1:
                self.is_exact = self._tries_exact()
                # a detector's own head reads them once more
                self._keeps = self.is_exact or kind_of(samples[0]) == 'det'
            levels = sum(level.nbytes for level in features)
            kept = 1 + (len(self.modules) + 1) * self._keeps
            left -= inputs.nbytes + levels * kept
            if left < 0:
                break

    @property
    def passes(self) -> float:
        """Passes of all images through the trunk, so far."""
        return self._images_run / self.num_pictures

    @contextmanager
    def _counted(self) -> Iterator[None]:

        def count(_: object, inputs: Tuple[Tensor]) -> None:
            self._images_run += len(inputs[0])

        handle = self.model.backbone.trunk.register_forward_pre_hook(count)
        try:
            yield
        finally:
            handle.remove()

    def single(self, module: int, weight: float = 1.) -> Weights:
        """One module alone."""
        return tuple(weight * (i == module) for i in range(len(self.modules)))

    def _alone(self, index: int, module: int) -> tuple:
        """A batch's features with one module, at weight one."""
        backbone, key = self.model.backbone, (index, self.single(module))
        if key not in self._known:
            device = next(self.model.parameters()).device
            name, levels = self.modules[module], None
            if backbone.bank.is_beside(name):
                levels = to_device(self._trunk[index].features, device)
            with self._counted(), backbone.only(name):
                features = backbone(self._inputs[index].to(device), levels)
            self._known[key] = to_device(tuple(features), torch.device('cpu'))
        return self._known[key]

    def _mixed(self, index: int, weights: Weights) -> tuple:
        """What features are if they are linear in the weights."""
        trunk = self._trunk[index].features
        total = [level.clone() for level in trunk]
        for module, weight in enumerate(weights):
            if weight:
                alone = self._alone(index, module)
                for level, own, bare in zip(total, alone, trunk):
                    level += weight * (own - bare)
        return tuple(total)

    def _passed(self, index: int) -> tuple:
        """What they are in a pass, as modules are weighed now."""
        device = next(self.model.parameters()).device
        with self._counted():
            features = self.run(self._inputs[index].to(device))
        return to_device(tuple(features), torch.device('cpu'))

    def _tries_exact(self) -> bool:
        """Whether mixing gives the features of the first batch."""
        num = len(self.modules)
        if self.most < num:  # not all modules can be tried at once
            return False
        # all at an equal share are looked at later, too
        weights = (1 / num, ) * num if num > 1 else (.5, )
        self.weigh(weights)
        passed, mixed = self._passed(0), self._mixed(0, weights)
        self._known[0, weights] = passed
        for level, other, bare in zip(passed, mixed, self._trunk[0].features):
            # one module that drowns all hides what the others do
            size = bare.abs().max()
            allowed = ROUNDING * (torch.minimum(
                (other - bare).abs().max(), size) + size / 100)
            # what is not finite is not linear either
            if not (level - other).abs().max() <= allowed:
                return False
        return True

    def batches(self, weights: Optional[Weights]) -> Iterator[CachedBatch]:
        """Features of all images, batch by batch, on the CPU.

        Args:
            weights (Weights, optional): Of the modules; as they are weighed
                now when None.
        """
        number = len(self._inputs)
        self._asked.add(weights)
        what = f'Scoring modules, setting {len(self._asked)}'
        for index in track(range(number), what, number):
            yield self._batch(index, weights)

    @torch.no_grad()
    def _batch(self, index: int, weights: Optional[Weights]) -> CachedBatch:
        trunk, key = self._trunk[index], (index, weights)
        if weights == self.bare:
            return trunk
        if key in self._known:
            features = self._known[key]
        elif weights is None:
            features = self._passed(index)
        elif sum(map(bool, weights)) == 1 and max(weights) == 1:
            features = self._alone(index, weights.index(1.))
        elif self.is_exact:
            features = self._mixed(index, weights)
        else:
            self.weigh(weights)
            features = self._passed(index)
            if len(set(weights)) == 1:
                self._known[key] = features
        if not self._keeps:  # it is not needed again
            self._known.pop(key, None)
        return CachedBatch(features, trunk.data_samples, trunk.input_shape)

    def identity(self) -> Iterator[Union[Tensor, str]]:
        """What features and labels depend on, beside the weights."""
        backbone = self.model.backbone
        yield backbone.trunk_fingerprint
        for name in self.modules:
            yield name
            yield from backbone.bank.members[name].state_dict().values()
        yield from (self.labels, self.picture, *self._inputs)

    def rows(self, weights: Optional[Weights]) -> Tensor:
        """Features of the rows that are scored, (n, d).

        Args:
            weights (Weights, optional): See :meth:`batches`.
        """
        return torch.cat([
            feature_rows(batch, self.num_extra_tokens, kept)
            for batch, kept in zip(self.batches(weights), self._kept)
        ])
