# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""LoRA modules to PEFT adapters, and back.

Both directions are exact. Three of their linears (queries, keys, values) may
be one of ours, or the reverse; see :mod:`.peft_changes`.
"""

import os
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

from mmengine.logging import print_log
from torch import Tensor, nn

from vim_mm.utils.messages import short
from vim_mm.zoo.card import ModuleCard, ZooError
from vim_mm.zoo.fingerprint import get_slot, trunk_fingerprint
from vim_mm.zoo.zoo import Zoo
from .peft_backbones import HEADS, Found, OwnNames, find_backbone
from .peft_changes import LinearChange, equalise, split, stack
from .peft_folder import Adapter, read_adapter, write_adapter
from .peft_layouts import LAYOUTS

PathLike = Union[str, os.PathLike]


def export_adapter(zoo: Union[Zoo, PathLike],
                   name: str,
                   dst: PathLike,
                   layout: str,
                   prefix: str = '',
                   base_model: Optional[str] = None) -> Path:
    """Write a LoRA module of a zoo as PEFT's adapter directory.

    Dropout is left out: PEFT's acts on the input, ours on the hidden.

    Args:
        zoo (Zoo | PathLike): The zoo or its directory.
        name (str): Name of the module.
        dst (PathLike): The directory to make.
        layout (str): Names of the layers: one of :data:`LAYOUTS`.
        prefix (str): What their model puts before these names, e.g. ``'vit'``
            for ViTForImageClassification. Defaults to nothing.
        base_model (str, optional): Where their model is found, for PEFT's
            ``base_model_name_or_path``.

    Returns:
        Path: ``dst``.

    Raises:
        ZooError: If the module is no LoRA, or a slot has no name there.
    """
    zoo = zoo if isinstance(zoo, Zoo) else Zoo(zoo)
    if layout not in LAYOUTS:
        raise ZooError(f"Layout '{layout}' is unknown: take one of "
                       f'{", ".join(LAYOUTS)}.')
    card, tensors = zoo.load(name)
    if card.kind != 'LoRA':
        raise ZooError(f"Module '{name}' consists of {card.kind} adapters, "
                       'which PEFT does not know: only LoRA can be exported.')
    theirs, ours = LAYOUTS[layout], find_backbone(card.slots)
    places = {}
    for slot in card.slots:
        place = ours and ours.places.get(slot)
        targets = theirs.targets(place) if place else []
        if not targets:
            raise ZooError(
                f"Module '{name}' changes '{slot}', which has no name in the "
                f'layout of {theirs.models}.')
        places.update((each, theirs.locate(each)) for each in targets)
    rank = len(_matrix(tensors, f'{card.slots[0]}.down.weight'))
    alpha = card.adapter.get('alpha')
    if alpha is not None and type(alpha) not in (int, float):
        raise ZooError(f"Module '{name}' has the alpha {short(alpha)}, which "
                       'is no number.')
    scale = Fraction(rank if alpha is None else alpha) / rank
    changes = {
        slot:
        LinearChange(
            _matrix(tensors, f'{slot}.down.weight'),
            _matrix(tensors, f'{slot}.up.weight'), scale)
        for slot in card.slots
    }
    rank, alpha, changes = equalise(
        stack(split(changes, ours.places), places))
    prefix = f'{prefix.rstrip(".")}.' if prefix else ''
    write_adapter(
        Path(dst), rank, alpha,
        {prefix + each: change
         for each, change in changes.items()}, base_model)
    return Path(dst)


def _matrix(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """A weight of a LoRA, which a stranger's module may not have."""
    found = tensors.get(name)
    if found is None or found.ndim != 2 or not found.numel():
        raise ZooError(f"Its tensor '{name}' is missing or no matrix, so it "
                       'is no LoRA; get the module again from its source.')
    return found


def import_adapter(src: PathLike,
                   zoo: Union[Zoo, PathLike],
                   name: str,
                   trunk: nn.Module,
                   trunk_card: Optional[Mapping[str, Any]] = None,
                   overwrite: bool = False,
                   **card_fields: Any) -> ModuleCard:
    """Read PEFT's adapter directory as a LoRA module of a zoo.

    What it changes beside the backbone, such as a text tower or a classifier
    that was trained along, is left out, and a line says so.

    Args:
        src (PathLike): The directory.
        zoo (Zoo | PathLike): The zoo or its directory.
        name (str): Name of the new module.
        trunk (nn.Module): The backbone of the adapter's base model with its
            weights loaded: the same network, or a twin of another library
            whose names :mod:`.peft_layouts` knows. An adapter does not say
            which weights it belongs to: that they are the same is the
            caller's word.
        trunk_card (Mapping, optional): What the card says of the trunk
            besides its type and fingerprint, e.g. ``weights``.
        overwrite (bool): Whether to replace a module of that name.
        **card_fields: What else the card says (``dataset``, ``task``,
            ``licence``, …).

    Returns:
        ModuleCard: The card as written.

    Raises:
        ZooError: If the adapter is more than plain LoRA, is damaged, or
            changes layers that the trunk does not have.
    """
    zoo = zoo if isinstance(zoo, Zoo) else Zoo(zoo)
    adapter = read_adapter(Path(src))
    try:
        theirs, ours = _find(adapter, trunk)
        left = _left_out(adapter, theirs)
        changes = stack(split(_inside(adapter, theirs, ours, trunk),
                              theirs.places), ours.places)
        dims = {slot: _check_slot(trunk, slot, changes[slot])
                for slot in changes}
    except ZooError as error:
        raise ZooError(f"'{src}' cannot become a module: {error}") from None
    rank, alpha, changes = equalise(changes)
    tensors = {}
    for slot, change in changes.items():
        tensors[f'{slot}.down.weight'] = change.down
        tensors[f'{slot}.up.weight'] = change.up
    card = ModuleCard(
        name=name,
        kind='LoRA',
        adapter=dict(type='vim_mm.LoRA', rank=rank, alpha=alpha),
        slots=list(changes),
        dims=dims,
        trunk=dict(
            trunk_card or {},
            type=type(trunk).__name__,
            fingerprint=trunk_fingerprint(trunk, list(changes))),
        **card_fields)
    card = zoo.save(card, tensors, overwrite=overwrite)
    if left:
        print_log(
            f"'{name}': {len(left)} layers of '{src}' are no part of the "
            f'backbone and were left out: {_counted(left)}.',
            logger='current')
    return card


def _find(adapter: Adapter, trunk: nn.Module) -> Tuple[Found, Found]:
    """The backbone in the adapter, and the trunk, in comparable names."""
    linears = [
        name for name, part in trunk.named_modules()
        if isinstance(part, nn.Linear)
    ]
    own = OwnNames(linears)
    same = find_backbone(adapter.changes, [own])
    known = find_backbone(adapter.changes)
    if same and (not known or len(same.places) >= len(known.places)):
        return same, find_backbone(linears, [own])
    ours = find_backbone(linears)
    if known is None:
        raise ZooError(
            f"its layer '{next(iter(adapter.changes))}' is no linear of this "
            f'{type(trunk).__name__}, nor of a backbone with the names of one '
            f'of the layouts {", ".join(LAYOUTS)}.')
    if ours is None:
        raise ZooError(f'it belongs to {known.layout.models}, of which this '
                       f'{type(trunk).__name__} is no twin.')
    return known, ours


def _left_out(adapter: Adapter, theirs: Found) -> List[str]:
    """The layers of an adapter that no output of the backbone depends on.

    Raises:
        ZooError: If any other layer has no place, or there is a second
            backbone.
    """
    layout, prefix, places = theirs
    left = [name for name in adapter.changes if name not in places]
    for other in {place.prefix for name in left
                  if (place := layout.locate(name))}:
        # a text tower has some of the names, a stage or a second backbone all
        blocks = other + layout.tower + layout.blocks.partition('{}')[0]
        if other[-2:-1].isdigit() or all(
                map(layout.locate,
                    (name for name in left if name.startswith(blocks)))):
            raise ZooError(
                'it changes several models at once, '
                f'{sorted([other + layout.tower, prefix])}, and a module '
                'belongs to one trunk.')
    left += adapter.others
    for name in left:
        if name.startswith(prefix) and not HEADS.fullmatch(
                name[len(prefix):]):
            raise ZooError(
                f"its layer '{name}' is no linear in the blocks of the "
                'backbone, and what is computed depends on it: train it '
                'without (target_modules, modules_to_save).')
    return left


def _inside(adapter: Adapter, theirs: Found, ours: Found,
            trunk: nn.Module) -> Dict[str, LinearChange]:
    """The changes of the backbone, all of which the trunk has a place for."""
    there = {(place.block, layer)
             for place in ours.places.values() for layer in place.layers}
    for name, (_, block, layers) in theirs.places.items():
        if not there.issuperset((block, layer) for layer in layers):
            raise ZooError(
                f"its layer '{name}' has no twin in this "
                f"{type(trunk).__name__}: load the twin of the adapter's "
                'base model.')
    return {name: adapter.changes[name] for name in theirs.places}


def _check_slot(trunk: nn.Module, slot: str,
                change: LinearChange) -> Union[int, List[int]]:
    """The dims of a slot, as on a card; one number if it is square."""
    linear = get_slot(trunk, slot)
    dims = [change.down.shape[1], len(change.up)]
    found = [linear.in_features, linear.out_features]
    if dims != found:
        raise ZooError(
            f"it maps {dims[0]} to {dims[1]} channels in '{slot}', and the "
            f'layer of this trunk {found[0]} to {found[1]}: load the twin of '
            "the adapter's base model.")
    return dims[0] if dims[0] == dims[1] else dims


def _counted(names: List[str]) -> str:
    """Names with their numbers counted, for a line."""
    counts = Counter(re.sub(r'\b\d+\b', '*', name) for name in names)
    return ', '.join(f'{name} ({count})' if count > 1 else name
                     for name, count in sorted(counts.items()))
