# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What submodules of a trunk read and return while it runs once."""

from functools import partial
from typing import Dict, List, Mapping, Optional, Sequence, Set, Tuple

import torch
from torch import Size, Tensor, nn
from torch.utils.hooks import RemovableHandle

from .slots import slot_input
from .used_weights import hook_weight, is_plain_linear, unhook_weight


class Watch:
    """Within this context submodules are watched.

    Args:
        modules (Mapping[str, nn.Module]): All submodules of the trunk.
        names (Sequence[str]): Those to watch.

    Attributes:
        seen (dict): Shapes of input and output, by name.
        deltas (dict): Zeros added to the outputs, which learn.
        used (set): Linear layers whose weight was used without a call.
        batches (set): Numbers of images or windows that layers ran on.
    """

    def __init__(self, modules: Mapping[str, nn.Module],
                 names: Sequence[str]) -> None:
        self.seen: Dict[str, Tuple[Size, Optional[Size]]] = {}
        self.deltas: Dict[str, Tensor] = {}
        self.used: Set[str] = set()
        self.batches: Set[int] = set()
        self._callers: Set[str] = set()
        self._modules = modules
        self._names = list(names)
        self._handles: List[RemovableHandle] = []

    def __enter__(self) -> 'Watch':
        for name in self._names:
            module = self._modules[name]
            self._handles.append(
                module.register_forward_hook(
                    partial(self._record, name), with_kwargs=True))
            if is_plain_linear(module):
                hook_weight(module, partial(self._record_use, name))
        for name in {name.rpartition('.')[0] for name in self._names}:
            self._handles.append(self._modules[name].register_forward_hook(
                partial(self._count_caller, name)))
        for module in self._modules.values():
            if isinstance(module, nn.Linear):
                self._handles.append(
                    module.register_forward_hook(self._count_batch))
        return self

    def __exit__(self, *_) -> None:
        for handle in self._handles:
            handle.remove()
        for name in self._names:
            if is_plain_linear(self._modules[name]):
                unhook_weight(self._modules[name])

    def check_all_seen(self) -> None:
        """Refuse linear layers that work without anyone seeing it.

        A submodule of a stage that is cut off does not work, and is no slot.

        Raises:
            ValueError: If the caller of a linear layer ran without it.
        """
        hidden = [
            name for name in self._names
            if name not in self.seen and name.rpartition('.')[0] in
            self._callers and isinstance(self._modules[name], nn.Linear)
        ]
        if hidden:
            raise ValueError(
                f'The {len(hidden)} linear layers {hidden[:3]} cannot be '
                'slots: the modules around them neither call them nor give '
                'their weight to `F.linear`; leave them out of the `slots` '
                'pattern.')

    def _record(self, name: str, _: nn.Module, args: tuple, kwargs: dict,
                output: Tensor) -> Optional[Tensor]:
        self.used.discard(name)
        self.seen[name] = (slot_input(args, kwargs).shape,
                           getattr(output, 'shape', None))
        if not isinstance(output, Tensor):
            return None
        self.deltas[name] = torch.zeros_like(output, requires_grad=True)
        return output + self.deltas[name]

    def _record_use(self, name: str, layer: nn.Module, args: tuple,
                    kwargs: dict, output: Tensor) -> Optional[Tensor]:
        self._count_batch(layer, args, output)
        output = self._record(name, layer, args, kwargs, output)
        self.used.add(name)  # until the layer itself is called
        return output

    def _count_batch(self, _: nn.Module, args: tuple, output: Tensor) -> None:
        if output.dim() == 3:
            self.batches.add(len(output))

    def _count_caller(self, name: str, *_) -> None:
        self._callers.add(name)
