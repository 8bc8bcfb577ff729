# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Plain vision transformers of timm and transformers: no LayerScale.

Both publish the AugReg and DeiT weights, with another epsilon in their norms.
"""

from dataclasses import replace
from functools import partial

from vim_mm.utils.tensor_names import Layout
from . import dinov2
from .family import Family
from .vit import convert_vit, vit_backbone

__all__ = ['TIMM_VIT', 'VIT']

CLASSIFIER = 'the classifier'
DECODER = 'the decoder and mask token of pretraining (MAE)'
LICENCE = 'that of the weights: Apache-2.0 for those of Google'

# timm's names are those of DINOv2's own code, which stems from it
TIMM = replace(
    dinov2.OFFICIAL,
    publisher='timm',
    mark='blocks.0.attn.qkv.weight',
    parts={
        k: v
        for k, v in dinov2.OFFICIAL.parts.items() if not k.startswith('ls')
    },
    dropped={
        r'head\..*': CLASSIFIER,
        r'decoder_.*|mask_token': DECODER,
    })

HUGGING_FACE = replace(
    dinov2.HUGGING_FACE,
    mark='encoder.layer.0.attention.attention.query.weight',
    parts={
        'layernorm_before': 'ln1',
        'attention.attention.query': 'attn.q',
        'attention.attention.key': 'attn.k',
        'attention.attention.value': 'attn.v',
        'attention.output.dense': 'attn.proj',
        'layernorm_after': 'ln2',
        'intermediate.dense': 'ffn.layers.0.0',
        'output.dense': 'ffn.layers.1',
    },
    dropped={
        r'pooler\..*': 'the pooler',
        r'(embeddings\.)?mask_token': DECODER,
    },
    outside=f'{CLASSIFIER}, {DECODER}')


def _family(layout: Layout, eps: float) -> Family:
    return Family(
        convert=partial(convert_vit, layouts=(layout, )),
        backbone=partial(vit_backbone, norm_cfg=dict(type='LN', eps=eps)),
        licence=LICENCE)


TIMM_VIT = _family(TIMM, 1e-6)
VIT = _family(HUGGING_FACE, 1e-12)
