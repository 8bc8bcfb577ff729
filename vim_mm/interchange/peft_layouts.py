# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Names of the linear layers in vision transformers that PEFT adapts."""

import re
from dataclasses import dataclass
from typing import Iterable, List, Mapping, Optional, Tuple

from torch import nn


@dataclass(frozen=True)
class PeftLayout:
    """How one library names the linears of a vision transformer.

    A layer goes by its name in ``mmpretrain.VisionTransformer``, such as
    ``'layers.0.attn.qkv'``, between one library and another.

    Attributes:
        models (str): Which models have these names.
        blocks (str): What comes before the number of a block.
        parts (Mapping): Linears in a layer of ``mmpretrain.VisionTransformer``
            to theirs: one, or three that make it, stacked.
        wrapped (str): What whole models call this part of theirs, where its
            names alone could be those of any network; '' if they cannot.
    """

    models: str
    blocks: str
    parts: Mapping[str, Tuple[str, ...]]
    wrapped: str = ''

    def targets(self, layer: str) -> Optional[List[str]]:
        """Their names for a layer, None if they have none."""
        match = re.fullmatch(r'layers\.(\d+)\.(.+)', layer)
        if match is None or match[2] not in self.parts:
            return None
        return [
            f'{self.blocks}.{match[1]}.{part}' for part in self.parts[match[2]]
        ]

    def _may_follow(self, prefix: str) -> bool:
        return not prefix or prefix.endswith(self.wrapped)

    def locate(self, name: str) -> Optional[Tuple[str, str, int]]:
        """Which layer one of their linears is.

        Returns:
            tuple | None: What stands before the name in their model (or
            ''), the layer, and which of its parts it is.
        """
        for ours, theirs in self.parts.items():
            for number, part in enumerate(theirs):
                match = re.fullmatch(
                    rf'(.*\.)?{re.escape(self.blocks)}\.(\d+)\.'
                    rf'{re.escape(part)}', name)
                if match and self._may_follow(match[1] or ''):
                    return match[1] or '', f'layers.{match[2]}.{ours}', number
        return None


#: Feed-forward layers and attention as most of them are called.
_MLP = {'ffn.layers.0.0': ('mlp.fc1', ), 'ffn.layers.1': ('mlp.fc2', )}
_CLIP = {
    'attn.qkv': ('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'),
    'attn.proj': ('self_attn.out_proj', ),
    **_MLP
}
_HUGGING_FACE = {
    'attn.qkv': tuple(f'attention.attention.{part}'
                      for part in ('query', 'key', 'value')),
    'attn.proj': ('attention.output.dense', ),
}
_HUGGING_FACE_5 = {
    'attn.qkv': ('attention.q_proj', 'attention.k_proj', 'attention.v_proj'),
    'attn.proj': ('attention.o_proj', ),
    **_MLP
}

#: Version 5 of transformers has renamed layers in memory, not on disk.
LAYOUTS = {
    'timm':
    PeftLayout(
        models='timm VisionTransformer, CLIP and DINOv2 towers included',
        blocks='blocks',
        parts={
            'attn.qkv': ('attn.qkv', ),
            'attn.proj': ('attn.proj', ),
            **_MLP
        }),
    'vit':
    PeftLayout(
        models='transformers 4 ViTModel',
        blocks='encoder.layer',
        parts={
            **_HUGGING_FACE,
            'ffn.layers.0.0': ('intermediate.dense', ),
            'ffn.layers.1': ('output.dense', ),
        }),
    'clip':
    PeftLayout(
        models='transformers 4 CLIPVisionModel, and CLIPModel',
        blocks='vision_model.encoder.layers',
        parts=_CLIP),
    'dinov2':
    PeftLayout(
        models='transformers 4 Dinov2Model',
        blocks='encoder.layer',
        parts={
            **_HUGGING_FACE,
            **_MLP
        }),
    'vit-v5':
    PeftLayout(
        models='transformers 5 ViTModel',
        blocks='layers',
        parts=_HUGGING_FACE_5,
        wrapped='vit.'),
    'clip-v5':
    PeftLayout(
        models='transformers 5 CLIPVisionModel',
        blocks='encoder.layers',
        parts=_CLIP,
        wrapped='vision_model.'),
    'dinov2-v5':
    PeftLayout(
        models='transformers 5 Dinov2Model',
        blocks='encoder.layer',
        parts=_HUGGING_FACE_5,
        wrapped='dinov2.'),
}

_PARTS = ('attn.qkv', 'attn.proj', 'ffn.layers.0.0', 'ffn.layers.1')

#: Our trunks, by the prefix of their names.
TRUNKS = {
    '':
    PeftLayout(
        models='mmpretrain.VisionTransformer',
        blocks='layers',
        parts={part: (part, )
               for part in _PARTS}),
    'timm_model.':
    LAYOUTS['timm'],
    'timm_model.model.':
    LAYOUTS['timm'],  # features_only
}


def layer_of(slot: str) -> Optional[str]:
    """The layer at a slot of one of our trunks, None if there is none."""
    for prefix, layout in TRUNKS.items():
        found = layout.locate(slot)
        if found and found[0] == prefix:
            return found[1]
    return None


def slot_of(layer: str, trunk: nn.Module) -> str:
    """Name of a layer in one of our trunks."""
    names = {name for name, _ in trunk.named_modules()}
    prefix = next((p for p in TRUNKS if p + TRUNKS[p].blocks in names), '')
    return prefix + TRUNKS[prefix].targets(layer)[0]


def find_layout(names: Iterable[str]) -> PeftLayout:
    """The layout in which most of these linears have a place.

    Where several name what is adapted alike, either is right for it.
    """
    names = list(names)
    return max(
        LAYOUTS.values(),
        key=lambda layout: sum(map(bool, map(layout.locate, names))))
