# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""CLIP's visual tower: patch embedding without bias, ``ln_pre``, QuickGELU.

Other publishers trained mostly with plain GELU, which no tensor tells.

``ln_post`` becomes the final norm. The projection into the joint space of
images and texts has no place in a backbone and is left out, as is the text
tower. Half precision weights are stored as float32, which is exact.
"""

from dataclasses import replace
from functools import partial

from vim_mm.utils.tensor_names import Layout
from . import dinov2
from .family import Family, StateDict
from .vit import convert_vit, vit_backbone

__all__ = ['CLIP', 'CLIP_GELU']

PROJECTION = 'the projection into the joint image-text space'
TEXT = 'the text tower and the temperature'

LAYOUTS = (
    Layout(
        publisher='OpenAI',
        mark='class_embedding',
        stem={
            'class_embedding': 'cls_token',
            'positional_embedding': 'pos_embed',
            'conv1': 'patch_embed.projection',
            'ln_pre': 'pre_norm',
            'ln_post': 'ln1',
        },
        blocks='transformer.resblocks.{}',
        parts={
            'ln_1': 'ln1',
            'attn.in_proj_weight': 'attn.qkv.weight',
            'attn.in_proj_bias': 'attn.qkv.bias',
            'attn.out_proj': 'attn.proj',
            'ln_2': 'ln2',
            'mlp.c_fc': 'ffn.layers.0.0',
            'mlp.c_proj': 'ffn.layers.1',
        },
        dropped={r'proj': PROJECTION},
        outside=TEXT),
    Layout(
        publisher='Hugging Face transformers',
        mark='embeddings.class_embedding',
        stem={
            'embeddings.class_embedding': 'cls_token',
            'embeddings.position_embedding.weight': 'pos_embed',
            'embeddings.patch_embedding': 'patch_embed.projection',
            'pre_layrnorm': 'pre_norm',
            'post_layernorm': 'ln1',
        },
        blocks='encoder.layers.{}',
        parts={
            'layer_norm1': 'ln1',
            'self_attn.q_proj': 'attn.q',
            'self_attn.k_proj': 'attn.k',
            'self_attn.v_proj': 'attn.v',
            'self_attn.out_proj': 'attn.proj',
            'layer_norm2': 'ln2',
            'mlp.fc1': 'ffn.layers.0.0',
            'mlp.fc2': 'ffn.layers.1',
        },
        dropped={r'.*\.position_ids': 'the numbers of the positions'},
        outside=f'{TEXT}, {PROJECTION}'),
    replace(
        dinov2.OFFICIAL,
        publisher='timm',
        mark='norm_pre.weight',
        stem=dict(dinov2.OFFICIAL.stem, norm_pre='pre_norm'),
        dropped={r'head\..*': PROJECTION},
        outside=f'{TEXT}, {PROJECTION}'),
)


def convert(state: StateDict) -> StateDict:
    """Tensors of any publisher's CLIP to mmpretrain names."""
    return convert_vit(state, LAYOUTS)


def _family(activation: str, licence: str) -> Family:
    return Family(
        convert=convert,
        backbone=partial(
            vit_backbone,
            pre_norm=True,
            norm_cfg=dict(type='LN', eps=1e-5),
            layer_cfgs=dict(act_cfg=dict(type=activation))),
        licence=licence)


CLIP = _family('mmpretrain.QuickGELU', 'MIT for the weights of OpenAI')
CLIP_GELU = _family('GELU', 'that of the publisher of the weights')
