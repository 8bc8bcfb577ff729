# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Whether frozen trunks are, at the end of a run, what they were."""

from typing import Dict, List, MutableMapping, Tuple
from weakref import WeakKeyDictionary

import torch
from mmengine.runner import Runner
from torch import Tensor, nn

from vim_mm.utils.wrappers import unwrap
from .rates import backbones

#: Integers as wide as a number, whose sums are exact.
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
#: By name: how many numbers, and a sum of their bits.
Sums = Dict[str, Tuple[int, int]]
_known: MutableMapping[Runner, Dict[str, Sums]] = WeakKeyDictionary()


def note_trunks(runner: Runner) -> None:
    """Note what the frozen trunks of a run hold.

    Trunks that checkpoints keep may learn, and where processes hold parts of
    tensors these move about: such are left out. So are those of models that
    do not learn, as teachers that follow a student: they round.
    """
    model, divides = unwrap(runner.model), getattr(
        getattr(runner, 'strategy', None), 'divides', False)
    _known[runner] = {
        name: sums_of(backbone.trunk)
        for name, backbone in backbones(model)
        if not (backbone.save_trunk or divides) and any(
            param.requires_grad for param in model.get_submodule(
                name.rpartition('.')[0]).parameters())
    }


def moved(runner: Runner) -> str:
    """What has changed in frozen trunks since :func:`note_trunks`.

    Returns:
        str: A sentence; '' if nothing has.
    """
    known = _known.get(runner, {})
    for name, backbone in backbones(unwrap(runner.model)):
        before = known.get(name)
        if before is None or backbone.save_trunk:
            continue
        now = sums_of(backbone.trunk)
        changed: List[str] = [
            key for key, value in now.items()
            # some libraries make tables anew for other sizes of images
            if before.get(key, value)[0] == value[0]
            and before.get(key, value) != value
        ]
        if changed:
            return (
                f'The frozen trunk of `model.{name}` has changed while the '
                f'run trained: {len(changed)} of its {len(now)} tensors, such '
                f'as {changed[0]}. Checkpoints leave it out, so what was '
                'learned meets another trunk when they are loaded; look for a '
                'hook that sets the trunk to training mode or writes to it, '
                'take it out, and train again.')
    return ''


@torch.no_grad()
def sums_of(module: nn.Module) -> Sums:
    """A sum over the bits of each tensor, by name: cheap, on any device."""
    tensors = {
        key: value for key, value in module.state_dict().items()
        if isinstance(value, Tensor) and not value.is_meta
    }
    sums = [_sum(value).cpu() for value in tensors.values()]
    found = torch.stack(sums).tolist() if sums else []
    return {
        key: (tensors[key].numel(), value)
        for key, value in zip(tensors, found)
    }


def _sum(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.bool:
        tensor = tensor.to(torch.uint8)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    kind = _INTEGERS.get(tensor.element_size())
    bits = tensor.detach().contiguous().view(kind)
    return bits.sum(dtype=torch.int64)
