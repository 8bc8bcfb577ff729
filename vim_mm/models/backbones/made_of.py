# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Whether the tensors that something was made of are still the same."""

from operator import attrgetter, is_
from typing import Iterable, List, Optional

import torch
from torch import Tensor, nn

_versions = attrgetter('_version')
_flags = attrgetter('requires_grad')


class MadeOf:
    """The state of some modules when something was made of them.

    It is compared in every pass, for thousands of tensors, so each comparison
    is one call over a list.

    Args:
        kept (Iterable[nn.Module]): Those whose values were copied.
        watched (Iterable[nn.Module]): All, of which it matters which tensors
            learn, and whether dropout is on.
    """

    def __init__(self, kept: Iterable[nn.Module],
                 watched: Iterable[nn.Module]) -> None:
        self._owners = _owners(kept)
        self._tensors = _held(self._owners)
        self._values = [t for t in self._tensors if t is not None]
        # a tensor made in inference mode counts no version
        self._counted = [t for t in self._values if not t.is_inference()]
        self._version = self._versions()
        self._places = self._addresses()
        # as long as these live no other tensor gets their address
        self._memory = [t.detach() for t in self._values]
        watched = list(watched)
        self._learns = [t for t in _held(_owners(watched)) if t is not None]
        self._flags = list(map(_flags, self._learns))
        self._modes = [m for m in watched if _drops(m)]
        self._training = [m.training for m in self._modes]

    @property
    def is_same(self) -> bool:
        """Whether all is as it was: tensors, their values, who learns.

        Values that are written through ``.data`` go unnoticed, as in all of
        torch.
        """
        now = _held(self._owners)
        return (len(now) == len(self._tensors)
                and all(map(is_, now, self._tensors))
                and self._versions() == self._version
                and self._addresses() == self._places
                and not (torch.is_grad_enabled()
                         and list(map(_flags, self._learns)) != self._flags)
                and [m.training for m in self._modes] == self._training)

    def _versions(self) -> int:
        return sum(map(_versions, self._counted))

    def _addresses(self) -> List[int]:
        # another one after `tensor.data = ...`, as of `module.half()`
        return list(map(Tensor.data_ptr, self._values))


def _owners(modules: Iterable[nn.Module]) -> List[dict]:
    parts = {part for module in modules for part in module.modules()}
    held = (h for part in parts for h in (part._parameters, part._buffers))
    return [tensors for tensors in held if tensors]


def _held(owners: List[dict]) -> List[Optional[Tensor]]:
    return [tensor for held in owners for tensor in held.values()]


def _drops(module: nn.Module) -> bool:
    dropout = getattr(module, 'dropout', None)
    return dropout is not None and dropout.p > 0
