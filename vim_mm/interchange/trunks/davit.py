# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""DaViT as timm publishes it, for ``vim_mm.MoEDaViT`` and its dense twin."""

import re

from mmengine.logging import print_log

from .family import Family, StateDict
from .sources import ConversionError, OtherLayout
from .vit import count_blocks

__all__ = ['TIMM_DAVIT']

# no tensor tells the number of heads; all sizes have heads of 32
HEAD_DIMS = 32
_HALF = r'^stages\.(\d+)\.blocks\.(\d+)\.'
#: names of timm to those of mmpretrain, one after the other
_NAMES = (
    (r'^stem\.conv\.', 'patch_embed.projection.'),
    (r'^stem\.', 'patch_embed.'),
    (_HALF + r'0\.attn\.', r'stages.\1.blocks.\2.spatial_block.attn.w_msa.'),
    (_HALF + r'0\.', r'stages.\1.blocks.\2.spatial_block.'),
    (_HALF + r'1\.', r'stages.\1.blocks.\2.channel_block.'),
    (r'\.mlp\.fc1\.', '.ffn.layers.0.0.'),
    (r'\.mlp\.fc2\.', '.ffn.layers.1.'),
    (r'\.downsample\.conv\.', '.downsample.projection.'),
    (r'^head\.norm\.', 'norm3.'),
)


def convert(state: StateDict) -> StateDict:
    """Tensors of timm's network to those of ``vim_mm.MoEDaViT``."""
    if 'stem.conv.weight' not in state:
        raise OtherLayout(
            "its layout is unknown: no key 'stem.conv.weight' (timm), but "
            f"{len(state)} keys such as '{next(iter(state))}'")
    kept = {k: v for k, v in state.items() if not k.startswith('head.fc.')}
    print_log(
        f'left out the classifier ({len(state) - len(kept)} tensors)',
        logger='current')
    return {_rename(key): tensor for key, tensor in kept.items()}


def _rename(key: str) -> str:
    for pattern, name in _NAMES:
        key = re.sub(pattern, name, key)
    # timm has a stage begin with the down-sampling that ends the one before
    return re.sub(r'^stages\.(\d+)\.downsample',
                  lambda m: f'stages.{int(m[1]) - 1}.downsample', key)


def backbone(state: StateDict) -> dict:
    """Config of the dense ``vim_mm.MoEDaViT`` for given tensors."""
    depths = [count_blocks(state, f'stages.{i}.blocks.') for i in range(4)]
    stem = state['patch_embed.projection.weight']
    if not stem.ndim or stem.shape[0] % HEAD_DIMS:
        raise ConversionError(f'its stem has the shape {tuple(stem.shape)}: '
                              'it is damaged or of another family')
    dims = stem.shape[0]
    arch = dict(
        embed_dims=dims,
        depths=depths,
        num_heads=[dims * 2**i // HEAD_DIMS for i in range(4)])
    return dict(
        type='vim_mm.MoEDaViT',
        arch=arch,
        moe=None,
        norm_cfg=dict(type='LN'),
        out_indices=(3, ))


TIMM_DAVIT = Family(
    convert=convert,
    backbone=backbone,
    licence='that of the weights: Apache-2.0 for those of ImageNet-1k')
