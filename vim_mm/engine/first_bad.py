# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Where values that are no numbers come from."""

from contextlib import ExitStack
from typing import Any, Callable, List, Optional, Tuple

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def first_bad(model: BaseModel, data: Any) -> Tuple[Optional[str], List[str]]:
    """Run a batch again and look at what every part makes of it.

    Args:
        model (BaseModel): The model, not wrapped.
        data: A batch as the loader gives it.

    Returns:
        tuple[str | None, list[str]]: The first part whose output is not
        finite, and the losses that are not.
    """
    found: List[str] = []

    def look(name: str) -> Callable:

        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            if not found and not all(map(_is_finite, tree_leaves(output))):
                found.append(name)

        return hook

    # with autograd, as in training: without it other paths may be taken
    with ExitStack() as stack, torch.enable_grad():
        batch = model.data_preprocessor(data, True)
        if not all(map(_is_finite, tree_leaves(batch['inputs']))):
            return 'data_preprocessor', []
        for name, part in model.named_modules():
            if name:
                handle = part.register_forward_hook(look(name))
                stack.callback(handle.remove)
        try:
            losses = model._run_forward(batch, mode='loss')
            _, values = model.parse_losses(losses)
        except Exception:  # some heads assert that values are finite
            if not found:
                raise
            return found[0], []
    bad = [name for name, value in values.items() if not _is_finite(value)]
    parts = [name for name in bad if name != 'loss']
    return next(iter(found), None), parts or bad


def bad_weight(model: nn.Module) -> Optional[str]:
    """The name of a parameter that learns and is not finite, None if all are.
    """
    learning = {
        name: param.detach()
        for name, param in model.named_parameters() if param.requires_grad
    }
    flags = [param.isfinite().all() for param in learning.values()]
    # waits for the device once
    if not flags or bool(torch.stack(flags).all()):
        return None
    return next(name for name, flag in zip(learning, flags) if not flag)


def _is_finite(value: Any) -> bool:
    return not (isinstance(value, Tensor) and value.is_floating_point()
                and not torch.isfinite(value).all())
