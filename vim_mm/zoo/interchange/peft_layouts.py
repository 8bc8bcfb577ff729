# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Names of the linear layers in vision transformers that PEFT adapts."""

import re
from dataclasses import dataclass
from typing import Iterable, List, Mapping, Optional, Tuple


@dataclass(frozen=True)
class PeftLayout:
    """How one library names the linears of a vision transformer.

    Attributes:
        models (str): Which models have these names.
        blocks (str): What comes before the number of a block.
        parts (Mapping): Linears in a layer of ``mmpretrain.VisionTransformer``
            to theirs: one, or three that make ours, stacked.
    """

    models: str
    blocks: str
    parts: Mapping[str, Tuple[str, ...]]

    def targets(self, slot: str) -> Optional[List[str]]:
        """Their names for one of our slots, None if they have none."""
        match = re.fullmatch(r'layers\.(\d+)\.(.+)', slot)
        if match is None or match[2] not in self.parts:
            return None
        return [
            f'{self.blocks}.{match[1]}.{part}' for part in self.parts[match[2]]
        ]

    def locate(self, name: str) -> Optional[Tuple[str, str, int]]:
        """Where one of their linears lies in our trunk.

        Returns:
            tuple | None: What stands before the name in their model (or
            ''), our slot, and which of its parts it is.
        """
        match = re.fullmatch(rf'(.*\.)?{re.escape(self.blocks)}\.(\d+)\.(.+)',
                             name)
        for ours, theirs in self.parts.items() if match else ():
            if match[3] in theirs:
                slot = f'layers.{match[2]}.{ours}'
                return match[1] or '', slot, theirs.index(match[3])
        return None


def _attention(*parts: str) -> Tuple[str, ...]:
    return tuple(f'attention.attention.{part}' for part in parts)


LAYOUTS = {
    'timm':
    PeftLayout(
        models='timm VisionTransformer, CLIP and DINOv2 towers included',
        blocks='blocks',
        parts={
            'attn.qkv': ('attn.qkv', ),
            'attn.proj': ('attn.proj', ),
            'ffn.layers.0.0': ('mlp.fc1', ),
            'ffn.layers.1': ('mlp.fc2', ),
        }),
    'vit':
    PeftLayout(
        models='transformers ViTModel',
        blocks='encoder.layer',
        parts={
            'attn.qkv': _attention('query', 'key', 'value'),
            'attn.proj': ('attention.output.dense', ),
            'ffn.layers.0.0': ('intermediate.dense', ),
            'ffn.layers.1': ('output.dense', ),
        }),
    'clip':
    PeftLayout(
        models='transformers CLIPVisionModel and CLIPModel',
        blocks='vision_model.encoder.layers',
        parts={
            'attn.qkv':
            ('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'),
            'attn.proj': ('self_attn.out_proj', ),
            'ffn.layers.0.0': ('mlp.fc1', ),
            'ffn.layers.1': ('mlp.fc2', ),
        }),
    'dinov2':
    PeftLayout(
        models='transformers Dinov2Model',
        blocks='encoder.layer',
        parts={
            'attn.qkv': _attention('query', 'key', 'value'),
            'attn.proj': ('attention.output.dense', ),
            'ffn.layers.0.0': ('mlp.fc1', ),
            'ffn.layers.1': ('mlp.fc2', ),
        }),
}


def find_layout(names: Iterable[str]) -> PeftLayout:
    """The layout in which most of these linears have a place.

    ViTModel and Dinov2Model name attention alike; either is right for it.
    """
    names = list(names)
    return max(
        LAYOUTS.values(),
        key=lambda layout: sum(map(bool, map(layout.locate, names))))
