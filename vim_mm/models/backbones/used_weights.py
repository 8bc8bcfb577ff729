# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Linear layers whose callers take the weight and never call the layer.

BEiT, EVA, SwinV2 and others put a bias together themselves and write
``F.linear(x, self.qkv.weight, bias)``, so that no hook of ``qkv`` ever runs.
"""

from typing import Any, Callable, Dict, Sequence, Tuple

import torch.nn.functional as F
from torch import Tensor, nn

#: A forward hook with keywords: layer, args, kwargs, output.
Hook = Callable[[nn.Module, tuple, dict, Tensor], Tensor]


class UsedWeight:
    """Stands for a layer's weight and lets a hook see what is made with it.

    It is an attribute of the layer beside its parameters, which stay what
    they are: names, state dicts, optimizers and casts know nothing of it. It
    is no tensor; torch asks it what to do, and it gives torch the weight.

    Args:
        layer (nn.Linear): The layer.
        hook (Callable): What would be its forward hook.
    """

    def __init__(self, layer: nn.Linear, hook: Hook) -> None:
        self.layer = layer
        self.hook = hook

    @classmethod
    def __torch_function__(cls,
                           function: Callable,
                           types: Sequence[type],
                           args: tuple = (),
                           kwargs: Dict[str, Any] = None) -> Any:
        """Call a function of torch with the weight itself."""
        kwargs = kwargs or {}
        plain = [_plain(arg) for arg in args]
        named = {key: _plain(value) for key, value in kwargs.items()}
        output = function(*plain, **named)
        if function is not F.linear:
            return output
        x, weight = _operands(*args, **kwargs)
        if not isinstance(weight, UsedWeight):
            return output
        changed = weight.hook(weight.layer, (x, ), {}, output)
        return output if changed is None else changed

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name in ('layer', 'hook'):  # of a copy
            raise AttributeError(name)
        return getattr(self.layer._parameters['weight'], name)


def _plain(value: Any) -> Any:
    if isinstance(value, UsedWeight):
        return value.layer._parameters['weight']
    return value


def _operands(input: Any, weight: Any, bias: Any = None) -> Tuple[Any, Any]:
    return input, weight


def is_plain_linear(layer: nn.Module) -> bool:
    """Whether the weight of a linear layer is a parameter of its own."""
    return isinstance(layer, nn.Linear) and 'weight' in layer._parameters


def hook_weight(layer: nn.Linear, hook: Hook) -> None:
    """Let a hook see every ``F.linear`` with the weight of a layer."""
    vars(layer)['weight'] = UsedWeight(layer, hook)


def unhook_weight(layer: nn.Linear) -> None:
    """Undo :func:`hook_weight`."""
    vars(layer).pop('weight', None)
