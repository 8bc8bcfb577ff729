# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A name for the weights that a module was trained beside."""

import hashlib
import re
from typing import Dict, Sequence

import torch
from mmengine.model import is_model_wrapper
from torch import nn

from .card import ZooError

#: what a module beside the trunk reads, its output levels
_OUTPUT = re.compile(r'outputs\.\d+')
#: made anew for every image size
_POSITION = re.compile(r'pos_embed|position_embed')


def get_slot(trunk: nn.Module, slot: str) -> nn.Module:
    """Return the submodule of ``trunk`` that a slot names.

    An output, ``outputs.0``, is the work of the whole trunk.

    Raises:
        ZooError: If the trunk has no such submodule.
    """
    if is_model_wrapper(trunk):
        trunk = trunk.module
    if _OUTPUT.fullmatch(slot):
        return trunk
    try:
        return trunk.get_submodule(slot)
    except AttributeError:
        children = ', '.join(name for name, _ in trunk.named_children())
        raise ZooError(
            f'The trunk {type(trunk).__name__} has no submodule {slot!r}; '
            f'its children are: {children or "none"}.') from None


def trunk_fingerprint(trunk: nn.Module, slots: Sequence[str]) -> str:
    """Hash the frozen weights that sit in the slots of a trunk.

    Only the slots' own tensors count. The same trunk is rightly used with
    different image sizes (resized position embeddings), with and without its
    final norm and with other ``out_indices``; the weights inside the slots are
    what a module was trained beside, and any other pretraining changes them.
    A module that reads the trunk's outputs was trained beside all of it: then
    every tensor counts, position embeddings apart.

    Neither the device, nor hooks on the slots, nor a wrapper around the trunk
    matters. The number format matters as far as it rounds: a trunk cast to
    bfloat16 has other weights. Non-persistent buffers are derived from the
    config and do not count.

    Args:
        trunk: The trunk, with its weights loaded.
        slots: Names of its submodules, in any order.

    Returns:
        64 hexadecimal digits: sha256 over the sorted tensors' names, shapes
        and float32 values.

    Raises:
        ZooError: If no slot is given, or one does not exist in the trunk.
    """
    if not slots:
        raise ZooError('A trunk has a fingerprint for given slots only, and '
                       'none is given.')
    digest = hashlib.sha256()
    # outputs share one entry; no sense in hashing the trunk for each
    names = {
        'outputs.0' if _OUTPUT.fullmatch(slot) else slot
        for slot in slots
    }
    for slot in sorted(names):
        state = _state(trunk, slot)
        digest.update(f'{slot}\n'.encode())
        for key in sorted(state):
            value = state[key].detach().to('cpu', torch.float32).contiguous()
            digest.update(f'{slot}.{key} {list(value.shape)}\n'.encode())
            digest.update(value.numpy().astype('<f4', copy=False).data)
    return digest.hexdigest()


def _state(trunk: nn.Module, slot: str) -> Dict[str, torch.Tensor]:
    state = get_slot(trunk, slot).state_dict()
    if not _OUTPUT.fullmatch(slot):
        return state
    return {k: v for k, v in state.items() if not _POSITION.search(k)}
