# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Names of the linear layers in vision backbones that PEFT adapts."""

import re
from dataclasses import dataclass, replace
from typing import List, Mapping, NamedTuple, Optional, Tuple


class Place(NamedTuple):
    """Where a linear is.

    Attributes:
        prefix (str): What its model puts before the names of a layout.
        block (tuple[int, ...]): Numbers of its block.
        layers (tuple[str, ...]): The layers that it stacks: 'q', 'k', 'v',
            'out' of attention, 'up', 'gate', 'down' of an MLP.
    """

    prefix: str
    block: Tuple[int, ...]
    layers: Tuple[str, ...]


@dataclass(frozen=True)
class PeftLayout:
    """How one library names the linears of a vision backbone.

    Attributes:
        models (str): Which models have these names.
        blocks (str): Name of a block, with '{}' for each of its numbers.
        parts (Mapping): Linears in a block to the layers that they stack.
        tower (str): What stands before the blocks in every model and holds
            the whole backbone.
        wrapped (tuple[str, ...]): What whole models call the backbone, where
            names alone could be those of any network; empty if they cannot.
    """

    models: str
    blocks: str
    parts: Mapping[str, Tuple[str, ...]]
    tower: str = ''
    wrapped: Tuple[str, ...] = ()

    @property
    def numbers(self) -> int:
        """How many numbers a block has."""
        return self.blocks.count('{}')

    def locate(self, name: str) -> Optional[Place]:
        """Where one of their linears is, None if it is none of theirs."""
        blocks = re.escape(self.tower + self.blocks).replace(
            re.escape('{}'), r'(\d+)')
        parts = '|'.join(map(re.escape, self.parts))
        match = re.fullmatch(rf'(.*\.)?{blocks}\.({parts})', name)
        if match is None:
            return None
        prefix, *block, part = match.groups(default='')
        if prefix and self.wrapped and not prefix.endswith(self.wrapped):
            return None
        return Place(prefix, tuple(map(int, block)), self.parts[part])

    def targets(self, place: Place) -> List[str]:
        """Their names for a linear of any layout, empty if they have none.

        One that stacks the same layers, else one for each of them, else one
        that stacks more.
        """
        layers = place.layers
        parts = [part for part, has in self.parts.items() if has == layers]
        parts = parts or [
            part for part, has in self.parts.items()
            if len(has) == 1 and has[0] in layers
        ]
        parts = parts or [
            part for part, has in self.parts.items() if layers[0] in has
        ]
        written = {layer for part in parts for layer in self.parts[part]}
        if self.numbers != len(place.block) or not written.issuperset(layers):
            return []
        blocks = self.tower + self.blocks.format(*place.block)
        return [f'{blocks}.{part}' for part in parts]


_QKV = ('q', 'k', 'v')
_MLP = {'mlp.fc1': ('up', ), 'mlp.fc2': ('down', )}
_ATTENTION = {'attn.qkv': _QKV, 'attn.proj': ('out', )}
_UNFUSED = {f'attn.{layer}_proj': (layer, ) for layer in _QKV}
_HUGGING_FACE = {
    'attention.attention.query': ('q', ),
    'attention.attention.key': ('k', ),
    'attention.attention.value': ('v', ),
    'attention.output.dense': ('out', ),
}
_HUGGING_FACE_5 = {
    'attention.q_proj': ('q', ),
    'attention.k_proj': ('k', ),
    'attention.v_proj': ('v', ),
    'attention.o_proj': ('out', ),
}
_GATED = {
    **_HUGGING_FACE_5, 'mlp.gate_proj': ('gate', ),
    'mlp.up_proj': ('up', ),
    'mlp.down_proj': ('down', )
}
_CLIP = {
    'self_attn.q_proj': ('q', ),
    'self_attn.k_proj': ('k', ),
    'self_attn.v_proj': ('v', ),
    'self_attn.out_proj': ('out', ),
    **_MLP
}
_POINTWISE = {'pointwise_conv1': ('up', ), 'pointwise_conv2': ('down', )}
_PWCONV = {'pwconv1': ('up', ), 'pwconv2': ('down', )}

#: Version 5 of transformers has renamed layers in memory, not on disk.
LAYOUTS = {
    'timm':
    PeftLayout(
        models='timm VisionTransformer and Eva: CLIP, SigLIP, DINOv2, '
        'DINOv3, PE, C-RADIO',
        blocks='blocks.{}',
        parts={
            **_ATTENTION,
            **_MLP
        }),
    'timm-gated':
    PeftLayout(
        models='the same with gated MLPs: EVA-02, DINOv3 S+ and H+',
        blocks='blocks.{}',
        parts={
            **_ATTENTION,
            **_UNFUSED, 'mlp.fc1_g': ('gate', ),
            'mlp.fc1_x': ('up', ),
            'mlp.fc2': ('down', )
        }),
    'timm-convnext':
    PeftLayout(
        models='timm ConvNeXt', blocks='stages.{}.blocks.{}', parts=_MLP),
    'hub':
    PeftLayout(
        models="Meta's own DINOv2 and DINOv3",
        blocks='blocks.{}',
        parts={
            **_ATTENTION,
            **_MLP
        }),
    'hub-gated':
    PeftLayout(
        models="the same with gated MLPs (S+, H+, giant), EVA's own",
        blocks='blocks.{}',
        parts={
            **_ATTENTION,
            **_UNFUSED, 'mlp.w1': ('gate', ),
            'mlp.w2': ('up', ),
            'mlp.w12': ('gate', 'up'),
            'mlp.w3': ('down', )
        }),
    'hub-convnext':
    PeftLayout(
        models="Meta's own ConvNeXt, DINOv3's included",
        blocks='stages.{}.{}',
        parts=_PWCONV),
    'vit':
    PeftLayout(
        models='transformers 4 ViTModel',
        blocks='encoder.layer.{}',
        parts={
            **_HUGGING_FACE, 'intermediate.dense': ('up', ),
            'output.dense': ('down', )
        }),
    'clip':
    PeftLayout(
        models='transformers 4 CLIPVisionModel and SiglipVisionModel, '
        'CLIPModel and SiglipModel of any version',
        blocks='encoder.layers.{}',
        parts=_CLIP,
        tower='vision_model.'),
    'dinov2':
    PeftLayout(
        models='transformers 4 Dinov2Model, with registers or without',
        blocks='encoder.layer.{}',
        parts={
            **_HUGGING_FACE,
            **_MLP
        }),
    'dinov2-gated':
    PeftLayout(
        models='the same of giant size',
        blocks='encoder.layer.{}',
        parts={
            **_HUGGING_FACE, 'mlp.weights_in': ('gate', 'up'),
            'mlp.weights_out': ('down', )
        }),
    'dinov3':
    PeftLayout(
        models='transformers 4 DINOv3ViTModel',
        blocks='layer.{}',
        parts=_GATED),
    'convnext':
    PeftLayout(
        models='transformers ConvNextModel and ConvNextV2Model',
        blocks='encoder.stages.{}.layers.{}',
        parts=_PWCONV),
    'dinov3-convnext':
    PeftLayout(
        models='transformers 4 DINOv3ConvNextModel',
        blocks='stages.{}.layers.{}',
        parts=_POINTWISE),
    'dinov3-v5':
    PeftLayout(
        models='transformers 5 DINOv3ViTModel',
        blocks='model.layer.{}',
        parts=_GATED),
    'dinov3-convnext-v5':
    PeftLayout(
        models='transformers 5 DINOv3ConvNextModel',
        blocks='model.stages.{}.layers.{}',
        parts=_POINTWISE),
    'vit-v5':
    PeftLayout(
        models='transformers 5 ViTModel',
        blocks='layers.{}',
        parts={
            **_HUGGING_FACE_5,
            **_MLP
        },
        wrapped=('vit.', 'vision_model.')),
    'clip-v5':
    PeftLayout(
        models='transformers 5 CLIPVisionModel and SiglipVisionModel',
        blocks='encoder.layers.{}',
        parts=_CLIP,
        wrapped=('vision_model.', )),
    'dinov2-v5':
    PeftLayout(
        models='transformers 5 Dinov2Model',
        blocks='encoder.layer.{}',
        parts={
            **_HUGGING_FACE_5,
            **_MLP
        },
        wrapped=('dinov2.', 'dinov2_with_registers.')),
    'dinov2-gated-v5':
    PeftLayout(
        models='the same of giant size',
        blocks='encoder.layer.{}',
        parts=_GATED,
        wrapped=('dinov2.', 'dinov2_with_registers.')),
}

#: Trunks of the OpenMMLab stack, and of timm with ``features_only``.
TRUNKS = (
    PeftLayout(
        models='mmpretrain.VisionTransformer',
        blocks='layers.{}',
        parts={
            **_ATTENTION, 'ffn.layers.0.0': ('up', ),
            'ffn.layers.1': ('down', ),
            'ffn.w12': ('gate', 'up'),
            'ffn.w3': ('down', )
        }),
    PeftLayout(
        models='mmpretrain.ConvNeXt', blocks='stages.{}.{}',
        parts=_POINTWISE),
    replace(LAYOUTS['timm-convnext'], blocks='stages_{}.blocks.{}'),
)
