# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Models without memory, to compare a file with before anything is allocated.

A config out of a file can ask for terabytes, or for a million layers.
"""

import threading
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.overrides import TorchFunctionMode

from .messages import short

#: Parts of a model; the largest trunks have some thousands.
PARTS = 10_000
#: What gives tensors their first values.
_FILLS = {
    *(fill for name, fill in vars(nn.init).items()
      if name.endswith('_') and not name.startswith('_')), Tensor.fill_,
    Tensor.normal_, Tensor.uniform_, Tensor.zero_
}


class _NoValues(TorchFunctionMode):
    """Tensors without memory take no values, and trying takes long.

    But rates of stochastic depth are read as numbers, so they need memory.
    """

    def __torch_function__(self,
                           func: Callable,
                           types: Any,
                           args: tuple = (),
                           kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _FILLS:
            tensor = args[0] if args else kwargs.get('tensor')
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor
        if func is torch.linspace:
            kwargs.setdefault('device', 'cpu')
        return func(*args, **kwargs)


@contextmanager
def without_memory(parts: int = PARTS) -> Iterator[None]:
    """Build models on torch's meta device within this context.

    Args:
        parts (int): Modules that may be built.

    Raises:
        ValueError: When more are built.
    """
    count, thread = 0, threading.get_ident()

    def note(module: nn.Module, name: str, part: nn.Module) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > parts:
            raise ValueError(f'it has more than {parts:,} parts')

    handle = register_module_module_registration_hook(note)
    try:
        with torch.device('meta'), _NoValues():
            yield
    finally:
        handle.remove()


def most_parts(tensors: int) -> int:
    """How many parts a model of so many tensors may have.

    Every layer has tensors, and some parts are without any. Few enough that
    a config which asks for more is refused within two seconds.

    Args:
        tensors (int): Those of its file.
    """
    return min(PARTS, 300 + 6 * tensors)


def check_shapes(own: Mapping[str, Sequence[int]],
                 given: Mapping[str, Sequence[int]]) -> None:
    """Refuse tensors of other names or shapes than a model's.

    Args:
        own (Mapping): Shapes of the model's tensors, by name.
        given (Mapping): Those of a file.

    Raises:
        ValueError: Names the first that differs.
    """
    for names, what in ((own.keys() - given.keys(), 'lacks'),
                        (given.keys() - own.keys(), 'has in excess')):
        if names:
            raise ValueError(f'it {what} {len(names)} tensors, such as '
                             f'{short(min(names))}')
    for name, shape in own.items():
        if tuple(shape) != tuple(given[name]):
            raise ValueError(f'size mismatch: {short(name)} has the shape '
                             f'{short(tuple(given[name]))} in place of '
                             f'{tuple(shape)}')


def shapes(tensors: Mapping[str, Tensor]) -> Dict[str, torch.Size]:
    """The shapes of tensors, by name."""
    return {name: value.shape for name, value in tensors.items()}
