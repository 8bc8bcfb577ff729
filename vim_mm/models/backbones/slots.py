# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Dict, Iterable, List, Optional, Tuple, Union
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from ..layouts import as_tokens, tokens_like
from ..patterns import match_names

if TYPE_CHECKING:
    from .plan import Pass

# timm's ViT; EfficientNet and its kin; ResNet; ConvNeXt, whose names are flat
# with features_only; RegNet
_TIMM = (r'(blocks\.\d+\.(attn|mlp|\d+)|layer\d+\.\d+|'
         r'stages[._]\d+(\.blocks)?\.\d+|s\d+\.b\d+)')
# all that an attention of timm is made of, however it splits queries, keys
# and values; not what turns positions, or heads, into weights
_ATTENTION = (r'(attn(_in|_out)?|xca|token_mixer|factoratt_crpe|e_mhsa)\.'
              r'(?!pos_proj|proj_[lw])\w+')
_TORCHVISION_VIT = r'encoder\.layers\.encoder_layer_\d+\.mlp'

#: Slots of the trunks we know, as full-match patterns over submodule names.
#: Classes of the OpenMMLab stack, timm and torchvision share some names.
DEFAULT_SLOTS: Dict[str, str] = {
    'VisionTransformer':
    rf'layers\.\d+\.(attn|ffn)|{_TIMM}|{_TORCHVISION_VIT}',
    'BEiTViT': r'layers\.\d+\.(attn|ffn)',
    'BEiT': r'layers\.\d+\.(attn|ffn)',
    'SwinTransformer': r'stages\.\d+\.blocks\.\d+\.(attn|ffn)',
    'SwinTransformerV2': r'stages\.\d+\.blocks\.\d+\.(attn|ffn)',
    'DaViT': r'stages\.\d+\.blocks\.\d+\.(spatial|channel)_block\.(attn|ffn)',
    'ConvNeXt': rf'stages\.\d+\.\d+|{_TIMM}|features\.[1357]\.\d+',
    'ResNet': r'layer\d+\.\d+',
    'MobileNetV2': r'layer\d+\.\d+|features\.([1-9]|1[0-7])',
    'EfficientNet': rf'{_TIMM}|features\.[1-7]\.\d+',
    'EfficientNetFeatures': _TIMM,
    'Eva': _TIMM,
    'Beit': _TIMM,
    'RegNet': _TIMM,
    'FeatureListNet': _TIMM,
    'FeatureGetterNet': rf'model\.{_TIMM}',
    'TIMMBackbone': rf'timm_model\.(model\.)?{_TIMM}',
}

#: The same for kinds of adapter that sit in linear layers.
DEFAULT_LINEAR_SLOTS: Dict[str, str] = {
    'VisionTransformer':
    rf'layers\.\d+\.attn\.(qkv|proj)|blocks\.\d+\.{_ATTENTION}|'
    rf'{_TORCHVISION_VIT}\.[03]',
    'Eva':
    rf'blocks\.\d+\.{_ATTENTION}',
    'Beit':
    rf'blocks\.\d+\.{_ATTENTION}',
    'SwinTransformer':
    r'stages\.\d+\.blocks\.\d+\.attn\.w_msa\.(qkv|proj)',
    'DaViT':
    r'stages\.\d+\.blocks\.\d+\.(spatial_block\.attn\.w_msa|'
    r'channel_block\.attn)\.(qkv|proj)',
    'ConvNeXt':
    r'stages\.\d+\.\d+\.pointwise_conv\d|'
    r'stages\.\d+\.blocks\.\d+\.mlp\.fc\d|features\.[1357]\.\d+\.block\.[35]',
    'BEiTViT':
    r'layers\.\d+\.attn\.(qkv|proj)',
    'BEiT':
    r'layers\.\d+\.attn\.(qkv|proj)',
    'FeatureGetterNet':
    rf'model\.blocks\.\d+\.{_ATTENTION}',
    'TIMMBackbone':
    rf'timm_model\.(.+\.)?({_ATTENTION}|'
    r'stages[._]\d+\.blocks\.\d+\.mlp\.fc\d)',
}

#: Pseudo-slots of modules beside the trunk: its outputs, level by level.
OUTPUT_SLOTS = r'outputs\.\d+'


@dataclass(frozen=True)
class SlotSpec:
    """A named place in the trunk where an adapter can be plugged in.

    Attributes:
        name (str): Name of the submodule, e.g. ``'layers.0.attn'``, or of an
            output, ``'outputs.0'``.
        dims (int): Width of its output.
        is_map (bool): True for (B, C, H, W) outputs, False for tokens
            (B, L, C).
        num_extra_tokens (int): Class and register tokens before the patches.
        stride (int): Pixels per token, for tokens that lie on a grid; 0 for
            others and for maps.
        is_read (bool): Whether any output of the trunk depends on it. Slots
            behind the last output (``out_indices``) take no new adapter: it
            would never get a gradient.
        in_dims (int, optional): Width of its input; that of the output when
            None. Defaults to None.
        is_linear (bool): Whether it is a linear layer. Defaults to False.
        is_called (bool): Whether the trunk calls it, or uses its weight
            alone. Defaults to True.
    """
    name: str
    dims: int
    is_map: bool
    num_extra_tokens: int = 0
    stride: int = 0
    is_read: bool = True
    in_dims: Optional[int] = None
    is_linear: bool = False
    is_called: bool = True

    def __post_init__(self) -> None:
        if self.in_dims is None:
            object.__setattr__(self, 'in_dims', self.dims)

    @property
    def widths(self) -> Union[int, List[int]]:
        """Width of the slot; of its input and output where they differ."""
        if self.in_dims == self.dims:
            return self.dims
        return [self.in_dims, self.dims]

    def grid(self, picture: Tuple[int, int], length: int) -> Tuple[int, int]:
        """Rows and columns of the patches of an image of (H, W) pixels.

        Raises:
            ValueError: If the slot carries another number of tokens.
        """
        stride = self.stride or max(picture)
        # trunks that pad round a size up, others down; in whole numbers, as
        # a tracer makes constants of what `math` has rounded
        for more in (stride - 1, 0):
            rows, cols = ((side + more) // stride for side in picture)
            if rows * cols + self.num_extra_tokens == length:
                return rows, cols
        raise ValueError(
            f"Slot '{self.name}' carries {length} tokens, but an image "
            f'of {picture[0]}x{picture[1]} at stride {self.stride} has '
            f'{rows}x{cols} patches and {self.num_extra_tokens} extra '
            'tokens; this trunk cannot be adapted at that size.')


class Running(threading.local):
    """The pass that runs, for the hooks inside a trunk; one in each thread.

    ``only`` and ``mixed`` say what this thread runs instead of the selected
    task: named modules, or a task for each image.

    While gradients are computed, blocks of the trunk may run again
    (activation checkpointing). They belong to the pass whose gradients
    arrived last: autograd finishes one pass before an earlier one.
    """

    def __init__(self) -> None:
        # a compiler watches what is set here, and no defaults of the class
        self.now: Optional['Pass'] = None
        self.again: Optional['ReferenceType[Pass]'] = None
        self.only: Optional[Tuple[str, ...]] = None
        self.mixed: Optional[Tuple[str, ...]] = None

    @property
    def current(self) -> Optional['Pass']:
        """The pass that runs, or runs again."""
        return self.now or self.repeated

    @property
    def repeated(self) -> Optional['Pass']:
        """The pass that runs again while gradients are computed."""
        if self.again is None or torch.compiler.is_compiling():
            return None
        in_backward = torch._C._current_graph_task_id() >= 0
        return self.again() if in_backward else None

    def repeat_in_backward(self, outputs: Iterable[Tensor]) -> None:
        """Let what runs again behind these outputs find the present pass."""
        mark = partial(self._mark, self.now)  # lives as long as the graph
        for output in outputs:
            if output.requires_grad:
                output.register_hook(mark)

    def _mark(self, one: 'Pass', _: Tensor) -> None:
        self.again = ref(one)

    def __reduce__(self) -> tuple:
        return Running, ()  # a copy runs nothing


class Slot:
    """Adds what the running pass says to the output of one submodule.

    A plain object whose bound method is the forward hook: a deep copy of the
    backbone (an EMA model) then runs its own adapters, which a closure would
    not.

    Args:
        spec (SlotSpec): What it looks like.
        place (int): Its place among all slots.
        running (Running): Where to find the pass.
    """

    def __init__(self, spec: SlotSpec, place: int, running: Running) -> None:
        self.spec = spec
        self.place = place
        self.running = running

    def add_delta(self, _: nn.Module, args: tuple, kwargs: dict,
                  output: Tensor) -> Tensor:
        """Forward hook; tokens are read beside the submodule, maps after it.

        Blocks of a CNN change width and stride, so only their output has a
        shape that is always right.
        """
        now = self.running.current
        if now is None:
            return output
        x = output if self.spec.is_map else slot_input(args, kwargs)
        grid = tuple(x.shape[-2:]) if self.spec.is_map else None
        if self.spec.is_map:
            x = as_tokens(x)
        delta = now.delta(self.place, x, grid)
        if delta is None:
            return output
        if self.spec.is_linear:  # of any layout, channels last
            return output + delta.reshape(output.shape)
        return output + tokens_like(delta, output)


class OutputSlot(Slot):
    """Adds what the running pass says to one output of the trunk."""

    def raise_level(self, level: Tensor, states: dict) -> Tensor:
        """Add what the modules beside the trunk make of a level.

        Args:
            level (Tensor): A map (B, C, H, W), tokens (B, L, C) or a vector
                (B, C), which counts as an image of one token.
            states (dict): What the rungs of the levels before hand on;
                filled in.
        """
        # where it is None, the image tells rows and columns of the tokens
        grid = {4: level.shape[-2:], 2: (1, 1)}.get(level.dim())
        delta = self.running.current.delta(self.place, as_tokens(level), grid,
                                           states)
        return level if delta is None else level + tokens_like(delta, level)


def slot_input(args: tuple, kwargs: dict) -> Tensor:
    """The tensor a submodule was called with, by position or by name."""
    return args[0] if args else next(iter(kwargs.values()))


def match_slots(trunk: nn.Module,
                pattern: Optional[str] = None,
                linear: bool = False) -> List[str]:
    """Names of the submodules that a pattern matches, in the trunk's order.

    Args:
        trunk (nn.Module): The backbone.
        pattern (str, optional): Regular expression that must match a
            submodule's full name; by default that of the trunk's class in
            :data:`DEFAULT_SLOTS`.
        linear (bool): Default to linear layers, those in
            :data:`DEFAULT_LINEAR_SLOTS`. Defaults to False.

    Raises:
        ValueError: If no pattern is known for the trunk, or none matches, or
            it is no regular expression.
    """
    defaults = DEFAULT_LINEAR_SLOTS if linear else DEFAULT_SLOTS
    given = pattern
    if pattern is None:
        for cls in type(trunk).__mro__:
            pattern = pattern or defaults.get(cls.__name__)
    if pattern is None:
        raise ValueError(
            f'No default slots are known for {type(trunk).__name__}; give '
            'ViMBackbone a `slots` pattern over its submodule names, known '
            f'are {sorted(defaults)}.')
    # an outer submodule of a nested match would add its delta twice
    names = match_names(trunk, pattern, 'slot')
    if linear and given is None:  # ConvNeXt's MLPs are convolutions in some
        names = [
            name for name in names
            if isinstance(trunk.get_submodule(name), nn.Linear)
        ]
    if not names:
        raise ValueError(
            f'This {type(trunk).__name__} has no linear layers where adapters '
            'of this kind sit by default; give it a `slots` pattern over '
            'submodule names.')
    return names
