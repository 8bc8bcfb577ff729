# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import math
import re
from dataclasses import dataclass, replace
from typing import Dict, Iterator, List, Optional, Tuple

import torch
from torch import Size, Tensor, nn

#: Slots of the trunks we know, as full-match patterns over submodule names.
DEFAULT_SLOTS: Dict[str, str] = {
    'VisionTransformer': r'layers\.\d+\.(attn|ffn)',
    'SwinTransformer': r'stages\.\d+\.blocks\.\d+\.(attn|ffn)',
    'ConvNeXt': r'stages\.\d+\.\d+',
    'ResNet': r'layer\d+\.\d+',
    'TIMMBackbone': r'timm_model\.(blocks|layer\d+|stages)\.\d+(\.\d+)?',
}


@dataclass(frozen=True)
class SlotSpec:
    """A named place in the trunk where an adapter can be plugged in.

    Attributes:
        name (str): Name of the submodule, e.g. ``'layers.0.attn'``.
        dims (int): Width of its output.
        is_map (bool): True for (B, C, H, W) outputs, False for tokens
            (B, L, C).
        num_extra_tokens (int): Class and register tokens before the patches.
        stride (int): Pixels per token, for tokens; 0 for maps.
        is_read (bool): Whether any output of the trunk depends on it. Slots
            behind the last output (``out_indices``) take no new adapter: it
            would never get a gradient.
    """
    name: str
    dims: int
    is_map: bool
    num_extra_tokens: int = 0
    stride: int = 0
    is_read: bool = True

    def grid(self, picture: Tuple[int, int], length: int) -> Tuple[int, int]:
        """Rows and columns of the patches of a picture of (H, W) pixels.

        Raises:
            ValueError: If the slot carries another number of tokens.
        """
        rows, cols = (math.ceil(side / self.stride) for side in picture)
        if rows * cols + self.num_extra_tokens != length:
            raise ValueError(
                f"Slot '{self.name}' carries {length} tokens, but a picture "
                f'of {picture[0]}x{picture[1]} at stride {self.stride} has '
                f'{rows}x{cols} patches and {self.num_extra_tokens} extra '
                'tokens; this trunk cannot be adapted at that size.')
        return rows, cols


def slot_input(args: tuple, kwargs: dict) -> Tensor:
    """The tensor a submodule was called with, by position or by name."""
    return args[0] if args else next(iter(kwargs.values()))


def find_slots(trunk: nn.Module,
               pattern: Optional[str] = None,
               probe_size: int = 224) -> Dict[str, SlotSpec]:
    """Find a trunk's slots and learn their shapes from one blank picture.

    Widths, layouts and strides are observed rather than declared, so any
    registry backbone works, whatever its attributes are called.

    Args:
        trunk (nn.Module): The backbone, in any state; left as it was.
        pattern (str, optional): Regular expression that must match a
            submodule's full name; by default that of the trunk's class in
            :data:`DEFAULT_SLOTS`.
        probe_size (int): Side of the blank picture in pixels.

    Returns:
        dict[str, SlotSpec]: Slots by name, in the trunk's order.

    Raises:
        ValueError: If no pattern is known for the trunk or none matches, or
            if a matched submodule returns neither tokens nor a map, or lies
            inside an activation checkpoint.
    """
    names = _match(trunk, pattern)
    modules = dict(trunk.named_modules())
    for name in names:
        _refuse_checkpointing(name, modules)
    seen: Dict[str, Tuple[Size, Optional[Size]]] = {}
    deltas: Dict[str, Tensor] = {}

    def record(name: str):

        def hook(_, args, kwargs, output):
            seen[name] = (slot_input(args, kwargs).shape,
                          getattr(output, 'shape', None))
            if isinstance(output, Tensor):
                deltas[name] = torch.zeros_like(output, requires_grad=True)
                return output + deltas[name]

        return hook

    handles = [
        modules[name].register_forward_hook(record(name), with_kwargs=True)
        for name in names
    ]
    modes = {module: module.training for module in trunk.modules()}
    trunk.eval()
    weight = next(trunk.parameters())
    picture = torch.zeros(
        1, 3, probe_size, probe_size, device=weight.device, dtype=weight.dtype)
    try:
        with torch.enable_grad():
            outputs = trunk(picture)
            sum(level.sum() for level in _tensors(outputs)).backward()
    finally:
        for module, training in modes.items():
            module.training = training
        for handle in handles:
            handle.remove()
    # a submodule the trunk never calls (a cut-off stage) is no slot
    specs = {
        name: _observed(name, probe_size, *seen[name])
        for name in names if name in seen
    }
    return {
        name: replace(spec, is_read=deltas[name].grad is not None)
        for name, spec in specs.items()
    }


def _tensors(outputs: object) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    else:
        for item in outputs:
            yield from _tensors(item)


def _match(trunk: nn.Module, pattern: Optional[str]) -> List[str]:
    if pattern is None:
        for cls in type(trunk).__mro__:
            pattern = pattern or DEFAULT_SLOTS.get(cls.__name__)
    if pattern is None:
        raise ValueError(
            f'No default slots are known for {type(trunk).__name__}; give '
            'ViMBackbone a `slots` pattern over its submodule names, known '
            f'are {sorted(DEFAULT_SLOTS)}.')
    matched = [n for n, _ in trunk.named_modules() if re.fullmatch(pattern, n)]
    # an outer submodule of a nested match would add its delta twice
    names = [n for n in matched if not any(m.startswith(n + '.')
                                           for m in matched)]
    if not names:
        some = [n for n, _ in trunk.named_modules() if n.count('.') == 2][:6]
        raise ValueError(
            f'The slot pattern {pattern!r} matches no submodule of '
            f'{type(trunk).__name__}; names look like {some}.')
    return names


def _refuse_checkpointing(name: str, modules: Dict[str, nn.Module]) -> None:
    # what runs again in backward would meet the gates of a later pass, or a
    # graph that is freed; the trunk itself only hands the setting on
    parts = name.split('.')
    owners = ['.'.join(parts[:end]) for end in range(1, len(parts))]
    if any(getattr(modules[owner], 'with_cp', False) for owner in owners):
        raise ValueError(
            f"Slot '{name}' lies inside an activation checkpoint, where its "
            'adapters would learn from wrong gates; set '
            '`model.backbone.trunk.with_cp=False`.')


def _observed(name: str, probe_size: int, inputs: Size,
              output: Optional[Size]) -> SlotSpec:
    if output is not None and len(output) == 4:
        return SlotSpec(name, dims=output[1], is_map=True)
    if output is None or len(output) != 3 or inputs != output:
        raise ValueError(
            f"Submodule '{name}' cannot be a slot: it maps {inputs} to "
            f'{output}, and a slot maps tokens (B, L, C) to tokens of the '
            'same shape or returns a map (B, C, H, W). Narrow the pattern.')
    side = math.isqrt(output[1])
    stride, rest = divmod(probe_size, side)
    if rest:
        raise ValueError(
            f"Slot '{name}' has {output[1]} tokens for a picture of "
            f'{probe_size} px, which is no whole stride; set `probe_size` '
            'to a multiple of the patch size.')
    return SlotSpec(
        name,
        dims=output[2],
        is_map=False,
        num_extra_tokens=output[1] - side * side,
        stride=stride)
