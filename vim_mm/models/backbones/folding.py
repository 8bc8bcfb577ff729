# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A finished fusion as one plain module."""

from typing import TYPE_CHECKING, Dict, List, Tuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .vim_backbone import ViMBackbone

#: slot to module to weight
Weights = Dict[str, Dict[str, float]]


def gates_to_fold(backbone: 'ViMBackbone',
                  threshold: float = 0.) -> Tuple[Weights, Weights]:
    """The running task's gates, in two parts.

    Args:
        backbone (ViMBackbone): With a fusion.
        threshold (float): In every slot, modules whose weight is smaller in
            magnitude, or zero, are dropped. Modules beside the trunk hand a
            state from level to level and are dropped in all slots or in none.
            Defaults to 0.

    Returns:
        tuple: Weights to fold, and weights other than zero that are dropped.

    Raises:
        ValueError: If the fusion cannot be folded, or nothing is left of it.
    """
    _check_fusion(backbone)
    bank, gates = backbone.bank, backbone.gates()
    heavy = {
        slot: {m for m, weight in row.items()
               if weight and abs(weight) >= threshold}
        for slot, row in gates.items()
    }
    used = set().union(*heavy.values())
    if any(map(bank.is_beside, used)):
        if len({tuple(bank.slots_of(module)) for module in used}) > 1:
            raise ValueError(
                f'The modules {sorted(used)} read different outputs of the '
                'trunk, so no one module equals their fusion.')
        heavy = dict.fromkeys(gates, used)
    kept: Weights = {}
    dropped: Weights = {}
    for slot, row in gates.items():
        for module, weight in row.items():
            if module in heavy[slot]:
                kept.setdefault(slot, {})[module] = weight
            elif weight:
                dropped.setdefault(slot, {})[module] = weight
    if not kept:
        raise ValueError(f'No weight is {threshold} or more in magnitude and '
                         'other than zero, so nothing is left to fold; lower '
                         'the threshold.')
    return kept, dropped


def _check_fusion(backbone: 'ViMBackbone') -> None:
    fusion = backbone.fusion
    if fusion is None:
        raise ValueError(
            'This backbone has no `fusion` to fold: set one over its modules '
            "(`set_fusion(dict(type='FixedFusion'))`). One that weighs "
            'streams in a neck cannot be folded.')
    if fusion.per_picture:
        raise ValueError(
            f'{type(fusion).__name__} weighs the modules anew for every '
            'image, so no one module equals it; train an EnsMoE, or serve '
            'the fusion as it is.')


@torch.no_grad()
def fold(backbone: 'ViMBackbone',
         weights: Weights) -> Tuple[dict, dict, Dict[str, Tensor]]:
    """The module that adds in every slot what weighted modules add there.

    Args:
        backbone (ViMBackbone): With a fusion; left as it is.
        weights (Weights): The weights.

    Returns:
        tuple: Config of its adapters, widths of its slots and its tensors, as
        for :meth:`AdapterBank.add`.

    Raises:
        ValueError: If the folded adapters differ from slot to slot.
    """
    bank, folded = backbone.bank, {}
    dims = {slot: bank.dims_of(next(iter(row)))[slot]
            for slot, row in weights.items()}
    width = max(map(len, weights.values()))
    for slot, row in weights.items():
        members = bank.in_slot(slot, list(row))
        kind = type(members[0])
        gates = next(members[0].parameters()).new_tensor(list(row.values()))
        if backbone.fusion.merges:
            folded[slot] = kind.merge(members, gates)
        else:
            folded[slot] = kind.fold(members, gates, width)
    cfgs: List[dict] = []
    for adapter in folded.values():
        if adapter.cfg() not in cfgs:
            cfgs.append(adapter.cfg())
    if len(cfgs) > 1:
        raise ValueError(
            f'The folded adapters differ from slot to slot, {cfgs[0]} here '
            f'and {cfgs[1]} there, but a module has one config; modules of '
            'different widths must be kept in all slots, so try a threshold '
            'of 0.')
    tensors = {
        f'{slot}.{key}': value
        for slot, adapter in folded.items()
        for key, value in adapter.state_dict().items()
    }
    return cfgs[0], dims, tensors
