# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""LoRA modules to PEFT adapters, and back.

Both directions are exact. Three of their linears (queries, keys, values) may
be one of ours: the change ``[B_q; B_k; B_v] A`` of one splits into three with
the same ``A``; three changes of their own stack into one of the sum of their
ranks, whose ``B`` is block-diagonal. A module has one rank, so that smaller
ones are padded with zeros.
"""

import os
from fractions import Fraction
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from vim_mm.zoo.card import ModuleCard, ZooError
from vim_mm.zoo.fingerprint import get_slot, trunk_fingerprint
from vim_mm.zoo.zoo import Zoo
from .peft_folder import LinearChange, read_adapter, write_adapter
from .peft_layouts import LAYOUTS, find_layout, layer_of, slot_of

#: Bytes that padding may take.
SPARE = 64 << 20

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
    prefix = f'{prefix.rstrip(".")}.' if prefix else ''
    renamed = {}
    for slot in card.slots:
        layer = layer_of(slot)
        targets = layer and LAYOUTS[layout].targets(layer)
        if not targets:
            raise ZooError(
                f"Module '{name}' changes '{slot}', which has no name in the "
                f'layout of {LAYOUTS[layout].models}.')
        ups = tensors[f'{slot}.up.weight'].chunk(len(targets))
        for target, up in zip(targets, ups):
            renamed[f'{prefix}{target}.lora_A.weight'] = tensors[
                f'{slot}.down.weight']
            renamed[f'{prefix}{target}.lora_B.weight'] = up
    rank = len(tensors[f'{card.slots[0]}.down.weight'])
    alpha = card.adapter.get('alpha')
    write_adapter(
        Path(dst), rank, rank if alpha is None else alpha, renamed, base_model)
    return Path(dst)


def import_adapter(src: PathLike,
                   zoo: Union[Zoo, PathLike],
                   name: str,
                   trunk: nn.Module,
                   trunk_card: Optional[Mapping[str, Any]] = None,
                   overwrite: bool = False,
                   **card_fields: Any) -> ModuleCard:
    """Read PEFT's adapter directory as a LoRA module of a zoo.

    Args:
        src (PathLike): The directory.
        zoo (Zoo | PathLike): The zoo or its directory.
        name (str): Name of the new module.
        trunk (nn.Module): Our twin of the adapter's base model, an
            ``mmpretrain.VisionTransformer`` or an ``mmpretrain.TIMMBackbone``
            of timm's VisionTransformer, with its weights loaded. An adapter
            does not say which weights it belongs to: that they are the same
            is the caller's word.
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
    changes = read_adapter(Path(src))
    try:
        fused = {
            slot_of(layer, trunk): parts[0]
            if len(parts) == 1 else _stack(layer, parts)
            for layer, parts in _by_layer(changes).items()
        }
        dims = {slot: _check_slot(trunk, slot, fused[slot]) for slot in fused}
    except ZooError as error:
        raise ZooError(f"'{src}' cannot become a module: {error}") from None
    order = [slot for slot, _ in trunk.named_modules() if slot in fused]
    rank, alpha, tensors = _equalise({slot: fused[slot] for slot in order})
    card = ModuleCard(
        name=name,
        kind='LoRA',
        adapter=dict(type='vim_mm.LoRA', rank=rank, alpha=alpha),
        slots=order,
        dims={slot: dims[slot]
              for slot in order},
        trunk=dict(
            trunk_card or {},
            type=type(trunk).__name__,
            fingerprint=trunk_fingerprint(trunk, order)),
        **card_fields)
    return zoo.save(card, tensors, overwrite=overwrite)


def _by_layer(
    changes: Mapping[str, LinearChange]
) -> Dict[str, List[Optional[LinearChange]]]:
    """Layers to their changes: one, or three of which some may lack."""
    layout = find_layout(changes)
    odd = [name for name in changes if layout.locate(name) is None]
    if odd:
        raise ZooError(
            f"its layer '{odd[0]}' is no linear in the blocks of a vision "
            'transformer of '
            f'{", ".join(each.models for each in LAYOUTS.values())}.')
    layers: Dict[str, List[Optional[LinearChange]]] = {}
    prefixes = set()
    for name, change in changes.items():
        prefix, layer, part = layout.locate(name)
        prefixes.add(prefix)
        number = len(layout.targets(layer))
        layers.setdefault(layer, [None] * number)[part] = change
    if len(prefixes) > 1:
        raise ZooError(f'it changes several models at once, {sorted(prefixes)}'
                       ', and a module belongs to one trunk.')
    return layers


def _stack(layer: str, parts: List[Optional[LinearChange]]) -> LinearChange:
    """Changes of equal layers as one of their stack, exactly."""
    present = [part for part in parts if part is not None]
    out = len(present[0].up)
    if len({(part.down.shape[1], len(part.up)) for part in present}) > 1:
        raise ZooError(f"the layers that make '{layer}' differ in width: keys "
                       'and values of fewer heads have no twin here.')
    scale = present[0].scale
    if len(present) == len(parts) and all(
            part.scale == scale and torch.equal(part.down, present[0].down)
            for part in parts):
        return LinearChange(present[0].down,
                            torch.cat([part.up for part in parts]), scale)
    down = torch.cat([part.down for part in present])
    if any(part.scale != scale for part in present):
        present_up = [part.up * float(part.scale) for part in present]
        scale = Fraction(1)
    else:
        present_up = [part.up for part in present]
    up = down.new_zeros(len(parts) * out, len(down))
    column, values = 0, iter(present_up)
    for row, part in enumerate(parts):
        if part is not None:
            rank = len(part.down)
            up[row * out:(row + 1) * out, column:column + rank] = next(values)
            column += rank
    return LinearChange(down, up, scale)


def _check_slot(trunk: nn.Module, slot: str,
                change: LinearChange) -> Union[int, List[int]]:
    """The dims of a slot, as on a card; one number if it is square."""
    linear = get_slot(trunk, slot)
    if not isinstance(linear, nn.Linear):
        raise ZooError(f"'{slot}' of this {type(trunk).__name__} is a "
                       f'{type(linear).__name__}, no linear layer.')
    dims = [change.down.shape[1], len(change.up)]
    found = [linear.in_features, linear.out_features]
    if dims != found:
        raise ZooError(
            f"it maps {dims[0]} to {dims[1]} channels in '{slot}', and the "
            f'layer of this trunk {found[0]} to {found[1]}: load the twin of '
            "the adapter's base model.")
    return dims[0] if dims[0] == dims[1] else dims


def _equalise(
    changes: Mapping[str, LinearChange]
) -> Tuple[int, Union[int, float], Dict[str, Tensor]]:
    """One rank and one alpha for all slots.

    Returns:
        tuple: The rank, the alpha, and ``'<slot>.<param>'`` to tensor.
    """
    rank = max(len(change.down) for change in changes.values())
    own = sum(c.down.nbytes + c.up.nbytes for c in changes.values())
    padded = 4 * rank * sum(c.down.shape[1] + len(c.up)
                            for c in changes.values())
    if padded > 4 * own + SPARE:
        raise ZooError(f'Its ranks go up to {rank}, and a module has one: '
                       f'that would take {padded:,} bytes in place of '
                       f'{own:,}; let PEFT train it with one rank.')
    scales = {change.scale for change in changes.values()}
    common = scales.pop() if len(scales) == 1 else None
    tensors = {}
    for slot, (down, up, scale) in changes.items():
        if common is None:
            up = up * float(scale)
        extra = rank - len(down)
        tensors[f'{slot}.down.weight'] = nn.functional.pad(
            down, (0, 0, 0, extra))
        tensors[f'{slot}.up.weight'] = nn.functional.pad(up, (0, extra))
    alpha = rank * (1 if common is None else common)
    exact = int(alpha) if alpha == int(alpha) else float(alpha)
    return rank, exact, tensors
