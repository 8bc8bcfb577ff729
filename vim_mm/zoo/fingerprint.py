# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Fingerprint of the weights that a module was trained with."""

import hashlib
import re
from typing import (Dict, Mapping, MutableMapping, Optional, Sequence, Tuple,
                    Union)
from weakref import WeakKeyDictionary

import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from .card import Dims, ModuleCard, ZooError

#: what a module beside the trunk reads, its output levels
_OUTPUT = re.compile(r'outputs\.\d+')
#: computed for every image size
_POSITION = re.compile(r'pos_embed|position_embed')
#: Values of each tensor that tell whether it has changed.
SAMPLES = 16
#: By trunk: slots to what their tensors were, and their digest.
_KNOWN: MutableMapping[nn.Module, Dict[Tuple[str, ...], Tuple[list, str]]] = \
    WeakKeyDictionary()


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

    What was hashed is kept with the trunk until one of its tensors changes,
    see :func:`_stamp`.

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
    if is_model_wrapper(trunk):
        trunk = trunk.module
    # outputs share one entry; no sense in hashing the trunk for each
    names = tuple(
        sorted({
            'outputs.0' if _OUTPUT.fullmatch(slot) else slot
            for slot in slots
        }))
    states = {name: _state(trunk, name) for name in names}
    stamp = [_stamp(state) for state in states.values()]
    known = _KNOWN.setdefault(trunk, {})
    if names not in known or known[names][0] != stamp:
        known[names] = (stamp, _digest(states))
    return known[names][1]


def same_trunk(trunk: nn.Module, other: Union[nn.Module, str],
               slots: Sequence[str]) -> bool:
    """Whether a trunk has the weights of another in some slots.

    Args:
        trunk: A trunk, with its weights loaded.
        other: Another one, or its fingerprint for these slots.
        slots: Names of submodules of both.

    Raises:
        ZooError: See :func:`trunk_fingerprint`.
    """
    if not isinstance(other, str):
        other = trunk_fingerprint(other, slots)
    return trunk_fingerprint(trunk, slots) == other


def check_trunk(card: ModuleCard,
                trunk: nn.Module,
                dims: Optional[Mapping[str, Dims]] = None) -> None:
    """Refuse a trunk with other weights than the module was trained with.

    Args:
        card: Card of the module.
        trunk: The trunk, with its weights loaded.
        dims: Channels of the trunk's slots, where they are known; they
            give a clearer sentence than the fingerprint.

    Raises:
        ZooError: If a slot is missing or has other dims, or the weights
            differ.
    """
    who = f'Module {card.name!r} does not fit this trunk'
    for slot in card.slots:
        try:
            get_slot(trunk, slot)
        except ZooError as error:
            raise ZooError(f'{who}. {error}') from None
    for slot in card.slots:
        if dims is not None and dims.get(slot) != card.dims[slot]:
            raise ZooError(
                f'{who}: slot {slot!r} has the dims {dims.get(slot)}, and '
                f'the module was made for {card.dims[slot]}.')
    if not same_trunk(trunk, card.trunk['fingerprint'], card.slots):
        own = trunk_fingerprint(trunk, card.slots)
        found = {
            key: value
            for key, value in card.trunk.items() if key != 'fingerprint'
        }
        raise ZooError(
            f'{who}: the weights in its slots differ (fingerprint '
            f'{own[:12]}…, and the module was trained beside '
            f'{card.trunk["fingerprint"][:12]}…). Load the pretrained '
            f'weights that its card describes: {found}.')


def _digest(states: Mapping[str, Dict[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for slot, state in states.items():
        digest.update(f'{slot}\n'.encode())
        for key in sorted(state):
            value = state[key].detach().to('cpu', torch.float32).contiguous()
            digest.update(f'{slot}.{key} {list(value.shape)}\n'.encode())
            digest.update(value.numpy().astype('<f4', copy=False).data)
    return digest.hexdigest()


def _stamp(state: Mapping[str, Tensor]) -> list:
    """A value that differs once one of the tensors has changed.

    Changes in place are counted by torch, but for those through ``.data``,
    and a trunk cast to half precision and back may lie where it lay before.
    So a few values of each tensor belong to it; what changes but others, and
    through ``.data``, is not seen.
    """
    stamp: list = []
    for key, value in state.items():
        value = value.detach()
        # torch keeps no version of tensors made in inference mode
        version = -1 if value.is_inference() else value._version
        few = value.flatten()[::max(1, value.numel() // SAMPLES)]
        stamp += [key, value.data_ptr(), version, value.dtype, value.shape]
        stamp += [value.stride(), few.tolist()]
    return stamp


def _state(trunk: nn.Module, slot: str) -> Dict[str, Tensor]:
    state = get_slot(trunk, slot).state_dict()
    if not _OUTPUT.fullmatch(slot):
        return state
    return {k: v for k, v in state.items() if not _POSITION.search(k)}
