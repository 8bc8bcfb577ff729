# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""DINOv2 small, base and large: pre-norm blocks with LayerScale."""

from vim_mm.utils.tensor_names import Layout
from .family import Family, StateDict
from .vit import convert_vit, vit_backbone

__all__ = ['DINOV2', 'HUGGING_FACE']

MASK = 'the mask token of pretraining'
HEADS = 'heads'

OFFICIAL = Layout(
    publisher='facebookresearch',
    mark='blocks.0.ls1.gamma',
    stem={
        'cls_token': 'cls_token',
        'pos_embed': 'pos_embed',
        'patch_embed.proj': 'patch_embed.projection',
        'norm': 'ln1',
    },
    blocks='blocks.{}',
    parts={
        'norm1': 'ln1',
        'attn.qkv': 'attn.qkv',
        'attn.proj': 'attn.proj',
        'ls1.gamma': 'attn.gamma1.weight',
        'norm2': 'ln2',
        'mlp.fc1': 'ffn.layers.0.0',
        'mlp.fc2': 'ffn.layers.1',
        'ls2.gamma': 'ffn.gamma2.weight',
    },
    dropped={
        r'mask_token': MASK,
        r'head\..*|dino_head\..*|ibot_head\..*': HEADS,
    })

HUGGING_FACE = Layout(
    publisher='Hugging Face transformers',
    mark='encoder.layer.0.layer_scale1.lambda1',
    stem={
        'embeddings.cls_token': 'cls_token',
        'embeddings.position_embeddings': 'pos_embed',
        'embeddings.patch_embeddings.projection': 'patch_embed.projection',
        'layernorm': 'ln1',
    },
    blocks='encoder.layer.{}',
    parts={
        'norm1': 'ln1',
        'attention.attention.query': 'attn.q',
        'attention.attention.key': 'attn.k',
        'attention.attention.value': 'attn.v',
        'attention.output.dense': 'attn.proj',
        # the names inside transformers since its version 5
        'attention.q_proj': 'attn.q',
        'attention.k_proj': 'attn.k',
        'attention.v_proj': 'attn.v',
        'attention.o_proj': 'attn.proj',
        'layer_scale1.lambda1': 'attn.gamma1.weight',
        'norm2': 'ln2',
        'mlp.fc1': 'ffn.layers.0.0',
        'mlp.fc2': 'ffn.layers.1',
        'layer_scale2.lambda1': 'ffn.gamma2.weight',
    },
    dropped={r'embeddings\.mask_token': MASK})


def convert(state: StateDict) -> StateDict:
    """Tensors of the official or Hugging Face DINOv2 to mmpretrain names."""
    return convert_vit(state, (OFFICIAL, HUGGING_FACE))


def backbone(state: StateDict) -> dict:
    """Config of the backbone that the converted tensors belong to."""
    return vit_backbone(state, layer_scale_init_value=1e-5)


DINOV2 = Family(
    convert=convert,
    backbone=backbone,
    licence='Apache-2.0 for the weights of facebookresearch')
