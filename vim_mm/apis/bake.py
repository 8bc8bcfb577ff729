# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A finished fusion folded into one plain module, for inference."""

from copy import deepcopy
from dataclasses import dataclass
from math import isfinite
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from mmengine.model import BaseModel
from torch import Tensor

from vim_mm.models.adapters import BaseAdapter
from vim_mm.models.backbones import ViMBackbone
from vim_mm.zoo import ModuleCard, head_state, save_module

#: Largest difference of the outputs, in units of the largest output, that
#: rounding explains; what dropped weights explain comes on top.
TOLERANCE = 1e-4
#: Slot to module to weight.
Weights = Dict[str, Dict[str, float]]


@dataclass(frozen=True)
class Baked:
    """What :func:`bake` made.

    Attributes:
        card (ModuleCard): As written into the zoo.
        kept (Weights): The weights that were folded.
        dropped (Weights): Weights other than zero that were left out.
        difference (float): Largest difference between the outputs of the
            fused and of the baked backbone on random pictures, in units of
            the largest output.
    """
    card: ModuleCard
    kept: Weights
    dropped: Weights
    difference: float


@torch.no_grad()
def bake(model: BaseModel,
         name: str,
         zoo: str,
         task: Optional[str] = None,
         threshold: float = 0.01,
         size: int = 224,
         overwrite: bool = False,
         card: Optional[dict] = None) -> Baked:
    """Fold the fusion of a trained model's backbone into a module of a zoo.

    The new module adds in every slot what the fused ones added there, and
    runs with ``modules=[name], fusion=None``. Weights are folded as they are:
    those left after dropping are not scaled up, so that a module of next to
    no weight takes next to nothing with it.

    Args:
        model (BaseModel): With a :class:`ViMBackbone` that has a fusion; left
            as it is. Its neck and head go into the zoo too.
        name (str): Name of the new module.
        zoo (str): Directory of the zoo.
        task (str, optional): The task of the fusion; the one that runs when
            None.
        threshold (float): In every slot, modules whose weight is smaller in
            magnitude are dropped. Modules beside the trunk hand a state from
            level to level and are dropped in all slots or in none. Defaults
            to 0.01.
        size (int): Side of the random pictures, in pixels. Defaults to 224.
        overwrite (bool): Replace a module of that name. Defaults to False.
        card (dict, optional): What else the card says: ``task``, ``dataset``
            and so on, see :func:`save_module`. Defaults to None.

    Raises:
        ValueError: If the fusion cannot be folded, nothing is left of it,
            outputs are not finite, or they differ from those of the fusion
            without the dropped weights.
        ZooError: If the module cannot be written.
    """
    _check_fusion(model)
    backbone = deepcopy(model.backbone).eval()
    backbone.select_task(task or backbone.task)
    picture = torch.randn(
        2, 3, size, size, generator=torch.Generator().manual_seed(0))
    picture = picture.to(backbone.trunk_fingerprint.device)
    fused = backbone(picture)
    kept, dropped = _split(backbone, threshold)
    _add_folded(backbone, name, kept)
    with backbone.only(name):
        baked = backbone(picture)
    difference = _relative(fused, baked)
    if not isfinite(difference):
        raise ValueError('The outputs of the fusion or of the baked module '
                         'are not finite, so they cannot be compared; it was '
                         'not saved. Check the weights of both.')
    _drop(backbone, dropped)
    rounding = _relative(backbone(picture), baked)
    if rounding > TOLERANCE:
        raise ValueError(
            f'The baked module differs by {rounding:.1e} of the largest '
            'output from the fusion without the dropped weights, more than '
            f'{TOLERANCE:.0e}; it was not saved.')
    origin = dict(
        fusion=type(backbone.fusion).__name__,
        task=backbone.task,
        threshold=threshold,
        difference=difference,
        weights=kept)
    card = dict(card or {})
    card['training'] = dict(card.get('training', {}), baked_from=origin)
    written = save_module(
        backbone,
        name,
        zoo,
        head=head_state(model) or None,
        overwrite=overwrite,
        **card)
    return Baked(written, kept, dropped, difference)


def _check_fusion(model: BaseModel) -> None:
    if not isinstance(model.backbone, ViMBackbone):
        raise ValueError(f'{type(model.backbone).__name__} is no ViMBackbone, '
                         'so there is no fusion to bake.')
    fusion = model.backbone.fusion
    if fusion is None:
        raise ValueError('This backbone has no `fusion`. Only a fusion in the '
                         'trunk can be folded into its modules; one that '
                         'weighs streams in a neck cannot.')
    if fusion.per_picture:
        raise ValueError(
            f'{type(fusion).__name__} weighs the modules anew for every '
            'picture, so no one module equals it; train an EnsMoE, or serve '
            'the fusion as it is.')


def _split(backbone: ViMBackbone,
           threshold: float) -> Tuple[Weights, Weights]:
    """Weights to fold, and those too small for it."""
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
        raise ValueError(f'No weight is {threshold} or more, so nothing is '
                         'left to bake; lower the threshold.')
    return kept, dropped


def _drop(backbone: ViMBackbone, dropped: Weights) -> None:
    """Set weights of the fusion to zero, for good: for a copy."""
    fusion, task = backbone.fusion, backbone.task
    gates = fusion.gates(task).clone()
    columns = fusion.task_modules[task]
    for row, slot in zip(gates, fusion.task_slots[task]):
        for module in dropped.get(slot, ()):
            row[columns.index(module)] = 0
    fusion.gates = lambda task: gates


def _add_folded(backbone: ViMBackbone, name: str, weights: Weights) -> None:
    """Add the folded module to the bank."""
    bank, folded = backbone.bank, {}
    dims = {slot: bank.dims_of(next(iter(row)))[slot]
            for slot, row in weights.items()}
    width = max(map(len, weights.values()))
    for slot, row in weights.items():
        members = bank.in_slot(slot, list(row))
        like = next(members[0].parameters())
        gates = like.new_tensor(list(row.values()))
        if backbone.fusion.merges:
            folded[slot] = _merge(members, gates)
        else:
            folded[slot] = type(members[0]).fold(members, gates, width)
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
    bank.add(name, cfgs[0], dims, tensors, trainable=False)
    bank.to(backbone.trunk_fingerprint.device)


def _merge(members: Sequence[BaseAdapter], gates: Tensor) -> BaseAdapter:
    merged = deepcopy(members[0])
    named = [dict(member.named_parameters()) for member in members]
    for key, param in merged.named_parameters():
        parts = torch.stack([params[key] for params in named])
        param.copy_(torch.einsum('k,k...->...', gates, parts))
    return merged


def _relative(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Largest difference, in units of the largest expected number."""
    largest = max(float(level.abs().max()) for level in expected)
    gaps = [(first - second).abs().max()
            for first, second in zip(expected, found)]
    return float(torch.stack(gaps).max()) / largest  # NaN if one is
