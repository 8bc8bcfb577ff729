# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Checks of a module's tensors against its card."""

import math
from typing import Dict, List, Mapping, Optional

import torch
from torch import Tensor

from .card import Dims, ModuleCard, ZooError

#: Problems after which no more are looked for.
MANY = 100


def count_params(tensors: Mapping[str, Tensor]) -> int:
    """Return the number of floating values."""
    return sum(v.numel() for v in tensors.values() if v.is_floating_point())


def demand(problems: List[str], who: str) -> None:
    """Raise a ZooError that names the first of the problems, if any."""
    if problems:
        more = f' (and {len(problems) - 3} more)' if len(problems) > 3 else ''
        raise ZooError(f'{who} is invalid: {"; ".join(problems[:3])}{more}.')


def check_head(name: str, head: Mapping[str, Tensor]) -> None:
    """Check the state of a task head.

    Raises:
        ZooError: If a value is not finite.
    """
    demand(not_finite(head), f'The head of module {name!r}')


def check_module(card: ModuleCard, tensors: Mapping[str, Tensor]) -> None:
    """Check a module against its card, without building its adapters.

    Args:
        card: The card, its number of parameters filled in.
        tensors: By ``'<slot>.<param>'``.

    Raises:
        ZooError: If a name, shape, dtype or value cannot be right.
    """
    problems: List[str] = []
    by_slot: Dict[str, Dict[str, Tensor]] = {slot: {} for slot in card.slots}
    for key, value in tensors.items():
        if len(problems) > MANY:
            break
        owner = _owner(key, by_slot)
        if owner is None:
            problems.append(f'tensor {key!r} belongs to no slot of the card')
        else:
            by_slot[owner][key[len(owner) + 1:]] = value
        # integers are counters among the buffers
        if value.dtype not in (torch.float32, torch.int64):
            problems.append(f'tensor {key!r} has the dtype {value.dtype}; '
                            'modules are kept in float32')
    first = card.slots[0]
    for slot, params in by_slot.items():
        if len(problems) > MANY:
            break
        odd = sorted(params.keys() ^ by_slot[first].keys())
        if not params:
            problems.append(f'slot {slot!r} has no tensors')
        elif odd:
            problems.append(f'slot {slot!r} and slot {first!r} have '
                            f'different parameters ({", ".join(odd[:5])})')
        elif not _has_dims(card.dims[slot], params):
            problems.append(f'no tensor of slot {slot!r} has an axis of its '
                            f'dims, {card.dims[slot]}')
    problems = problems or not_finite(tensors)
    if not problems and count_params(tensors) != card.num_params:
        problems.append(f'the card promises {card.num_params} parameters, '
                        f'and the file holds {count_params(tensors)}')
    demand(problems, f'Module {card.name!r}')


def _owner(key: str, slots: Mapping[str, object]) -> Optional[str]:
    """Return the longest slot that begins a key, or None."""
    parts = key.split('.')
    starts = ('.'.join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
    return next((start for start in starts if start in slots), None)


def not_finite(tensors: Mapping[str, Tensor]) -> List[str]:
    """Problems: tensors that hold NaN or infinity."""
    return [
        f'tensor {key!r} holds NaN or infinity'
        for key, value in tensors.items()
        if value.is_floating_point() and not _is_finite(value)
    ]


def _is_finite(value: Tensor) -> bool:
    if value.element_size() == 1:  # formats that nothing is computed with
        value = value.float()
    # NaN is the extreme of all; torch.isfinite would make two copies
    return not value.numel() or all(
        math.isfinite(each) for each in value.detach().aminmax())


def _has_dims(dims: Dims, params: Mapping[str, Tensor]) -> bool:
    """An adapter reads and writes its slot, so axes of it have its dims."""
    wanted = set(dims if isinstance(dims, list) else [dims])
    return wanted <= {n for value in params.values() for n in value.shape}
