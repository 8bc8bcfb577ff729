# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Low-rank changes of linears, taken apart and stacked; all of it is exact.

The change ``[B_q; B_k; B_v] A`` of one stacked linear splits into three with
the same ``A``; changes of three linears stack into one of the sum of their
ranks, whose ``B`` is block-diagonal. A module has one rank, so that smaller
ones are padded with zeros.
"""

from fractions import Fraction
from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from vim_mm.zoo.card import ZooError
from .peft_layouts import Place

#: Bytes that padding may take.
SPARE = 64 << 20
#: A layer that no linear of it is stacked with: its block and its name.
Layer = Tuple[Tuple[int, ...], str]


class LinearChange(NamedTuple):
    """``scale * up @ down``, added to the weight of a linear layer.

    Attributes:
        down (Tensor): PEFT's ``lora_A``, (r, in).
        up (Tensor): PEFT's ``lora_B``, (out, r).
        scale (Fraction): Its factor, exactly.
    """

    down: Tensor
    up: Tensor
    scale: Fraction


def split(changes: Mapping[str, LinearChange],
          places: Mapping[str, Place]) -> Dict[Layer, LinearChange]:
    """Changes of linears as those of the layers that they stack.

    Raises:
        ZooError: If a linear cannot be the stack that its name says.
    """
    layers = {}
    for name, change in changes.items():
        _, block, stacked = places[name]
        if len(change.up) % len(stacked):
            raise ZooError(
                f"its layer '{name}' has {len(change.up)} outputs, which "
                f'are no {len(stacked)} layers of one width.')
        for layer, up in zip(stacked, change.up.chunk(len(stacked))):
            layers[block, layer] = change._replace(up=up)
    return layers


def stack(layers: Mapping[Layer, LinearChange],
          places: Mapping[str, Place]) -> Dict[str, LinearChange]:
    """Changes of layers as those of the linears at given places.

    Raises:
        ZooError: If there is none for a layer, or widths differ.
    """
    stacked, left = {}, dict(layers)
    for name, (_, block, parts) in places.items():
        found = [left.pop((block, layer), None) for layer in parts]
        if any(found):
            stacked[name] = found[0] if len(found) == 1 else _stack(
                name, found)
    if left:
        (block, layer), _ = left.popitem()
        raise ZooError(
            f"it changes '{layer}' of block {'.'.join(map(str, block))}, "
            'which the other model does not have: load the twin of its base '
            'model.')
    return stacked


def _stack(name: str, parts: List[Optional[LinearChange]]) -> LinearChange:
    """Changes of equal layers, some of which may be none, as one."""
    present = [part for part in parts if part is not None]
    out = len(present[0].up)
    if len({(part.down.shape[1], len(part.up)) for part in present}) > 1:
        raise ZooError(f"the layers that make '{name}' differ in width: keys "
                       'and values of fewer heads have no twin here.')
    scale = present[0].scale
    if len(present) == len(parts) and all(
            part.scale == scale and torch.equal(part.down, present[0].down)
            for part in parts):
        return LinearChange(present[0].down,
                            torch.cat([part.up for part in parts]), scale)
    down = torch.cat([part.down for part in present])
    if any(part.scale != scale for part in present):
        ups = [part.up * float(part.scale) for part in present]
        scale = Fraction(1)
    else:
        ups = [part.up for part in present]
    up = down.new_zeros(len(parts) * out, len(down))
    column, values = 0, iter(ups)
    for row, part in enumerate(parts):
        if part is not None:
            rank = len(part.down)
            up[row * out:(row + 1) * out, column:column + rank] = next(values)
            column += rank
    return LinearChange(down, up, scale)


def equalise(
    changes: Mapping[str, LinearChange]
) -> Tuple[int, Union[int, float], Dict[str, LinearChange]]:
    """Give all changes one rank and one scale.

    Args:
        changes (Mapping): The changes by name.

    Returns:
        tuple: The rank, PEFT's alpha, and the changes.

    Raises:
        ZooError: If ranks differ so much that padding takes a lot of memory.
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
    equal = {}
    for name, (down, up, scale) in changes.items():
        if common is None:
            up, scale = up * float(scale), Fraction(1)
        extra = rank - len(down)
        equal[name] = LinearChange(
            nn.functional.pad(down, (0, 0, 0, extra)),
            nn.functional.pad(up, (0, extra)), scale)
    alpha = rank * (1 if common is None else common)
    return rank, int(alpha) if alpha == int(alpha) else float(alpha), equal
