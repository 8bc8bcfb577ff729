# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""One pass of a trunk for all tasks whose modules sit beside it."""

from contextlib import contextmanager
from typing import Iterable, Iterator, List, Optional, Tuple

import torch
from mmengine.config import ConfigDict
from torch import Tensor

from vim_mm.models.autocast import autocast_dtype
from vim_mm.models.backbones import ViMBackbone
from vim_mm.models.tasks import holders
from .sharing import tensors

Levels = Tuple[Tensor, ...]


class TrunkPass:
    """The outputs of a trunk, kept for the tasks that read the same batch.

    Only the last batch is kept, and only within :func:`read_once`.

    Args:
        backbone (ViMBackbone): It holds the trunk.
        options (dict, optional): Arguments of ``torch.compile``; the trunk
            is not compiled when None.
    """

    def __init__(self, backbone: ViMBackbone,
                 options: Optional[dict] = None) -> None:
        self._read = backbone.read_levels
        self._compiles = options is not None
        if self._compiles:
            self._read = torch.compile(self._read, **options)
        self.keeps = False
        self.kept: Optional[Kept] = None

    def __call__(self, x: Tensor) -> Levels:
        """The trunk's outputs for a batch, from a pass or as kept."""
        kept = self.kept
        if kept is not None and kept.is_of(x):
            return kept.levels
        levels = self._read(x)
        if self._compiles:  # a CUDA graph writes over its own outputs
            levels = tuple(level.clone() for level in levels)
        if self.keeps and not any(
                t.is_inference() or t.requires_grad for t in (x, *levels)):
            self.kept = Kept(x, levels)
        return levels


class Kept:
    """The outputs of a trunk for a batch."""

    def __init__(self, x: Tensor, levels: Levels) -> None:
        self.x = x
        self.levels = levels
        self._dtype = autocast_dtype(x.device.type)
        self._versions = self._count()

    def _count(self) -> List[int]:
        """It grows with every write into one of the tensors."""
        return [tensor._version for tensor in (self.x, *self.levels)]

    def is_of(self, x: Tensor) -> bool:
        """Whether the trunk would give the very same for another batch."""
        return (self._count() == self._versions and self.x.dtype == x.dtype
                and self._dtype == autocast_dtype(x.device.type)
                and self.x.device == x.device and torch.equal(self.x, x))


class ReadsLevels:
    """The forward of a backbone whose modules sit beside the trunk.

    Args:
        backbone (ViMBackbone): The backbone.
        trunk_pass (TrunkPass): Where its trunk's outputs come from.
        options (dict, optional): As for :class:`TrunkPass`.
    """

    def __init__(self,
                 backbone: ViMBackbone,
                 trunk_pass: TrunkPass,
                 options: Optional[dict] = None) -> None:
        self.trunk_pass = trunk_pass
        self._climb = backbone.forward
        if options is not None:
            self._climb = torch.compile(self._climb, **options)

    def __call__(self, x: Tensor) -> tuple:
        """See :meth:`ViMBackbone.forward`."""
        return self._climb(x, self.trunk_pass(x))


@contextmanager
def read_once(passes: Iterable[TrunkPass]) -> Iterator[None]:
    """Within this context a trunk runs once for successive equal batches."""
    passes = list(passes)
    for one in passes:
        one.keeps = True
    try:
        yield
    finally:
        for one in passes:
            one.keeps, one.kept = False, None


def is_beside(backbone: ViMBackbone) -> bool:
    """Whether the modules that run sit beside the trunk, or some of them."""
    names = backbone.bank.names
    if backbone.fusion is not None:
        names = backbone.fusion.task_modules[backbone.task]
    return any(map(backbone.bank.is_beside, names))


def gives_same_levels(first: ViMBackbone, cfg: ConfigDict,
                      second: ViMBackbone, other: ConfigDict) -> bool:
    """Whether two trunks are set alike, hold the same tensors, run one task.

    Args:
        first (ViMBackbone), second (ViMBackbone): They hold the trunks.
        cfg (ConfigDict), other (ConfigDict): The trunks' configs. Where
            weights came from does not matter.
    """

    def settings(trunk: ConfigDict) -> dict:
        return {
            key: value
            for key, value in trunk.items() if key not in ('type', 'init_cfg')
        }

    if type(first.trunk) is not type(second.trunk):
        return False
    own, theirs = ([value for *_, value in tensors(each.trunk)]
                   for each in (first, second))
    ran, runs = ([part.task for part in holders(each.trunk)]
                 for each in (first, second))
    return (settings(cfg) == settings(other) and ran == runs
            and len(own) == len(theirs)
            and all(a is b for a, b in zip(own, theirs)))
