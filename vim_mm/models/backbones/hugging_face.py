# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Files of Hugging Face's transformers in names that timm reads.

timm converts what the authors of a network published. What transformers
publishes of it gets the authors' names here, or timm's own.
"""

from collections.abc import Mapping
from typing import Callable, Dict, List, Tuple

import torch
from torch import Tensor

from vim_mm.utils.tensor_names import Layout, fuse_qkv

StateDict = Dict[str, Tensor]

_ATTENTION = {
    'attention.attention.query': 'attn.q',
    'attention.attention.key': 'attn.k',
    'attention.attention.value': 'attn.v',
    'attention.output.dense': 'attn.proj',
}
#: Since its version 5, in memory.
_ATTENTION_5 = {
    'attention.q_proj': 'attn.q',
    'attention.k_proj': 'attn.k',
    'attention.v_proj': 'attn.v',
    'attention.o_proj': 'attn.proj',
}
_BLOCK = {
    'norm1': 'norm1',
    'norm2': 'norm2',
    'layer_scale1.lambda1': 'ls1.gamma',
    'layer_scale2.lambda1': 'ls2.gamma',
}


def _dinov3(mark: str, mlp: Mapping[str, str]) -> Layout:
    return Layout(
        publisher='DINOv3ViTModel',
        mark=f'layer.0.{mark}.weight',
        stem={
            'embeddings.cls_token': 'cls_token',
            'embeddings.mask_token': 'mask_token',
            'embeddings.register_tokens': 'storage_tokens',
            'embeddings.patch_embeddings': 'patch_embed.proj',
            'norm': 'norm',
        },
        blocks='layer.{}',
        layers='blocks.{}',
        parts={
            **_BLOCK,
            **_ATTENTION_5,
            **mlp
        })


DINOV3 = _dinov3('attention.q_proj', {
    'mlp.up_proj': 'mlp.fc1',
    'mlp.down_proj': 'mlp.fc2',
})
DINOV3_GATED = _dinov3(
    'mlp.gate_proj', {
        'mlp.gate_proj': 'mlp.w1',
        'mlp.up_proj': 'mlp.w2',
        'mlp.down_proj': 'mlp.w3',
    })
_DOWN = 'downsample_layers'
DINOV3_CONVNEXT = Layout(
    publisher='DINOv3ConvNextModel',
    mark='stages.0.downsample_layers.0.weight',
    stem={
        'layer_norm': 'norm',
        **{f'stages.{stage}.{_DOWN}.{part}': f'{_DOWN}.{stage}.{part}'
           for stage in range(4) for part in range(2)}
    },
    blocks='stages.{}.layers.{}',
    layers='stages.{}.{}',
    parts={
        'depthwise_conv': 'dwconv',
        'layer_norm': 'norm',
        'pointwise_conv1': 'pwconv1',
        'pointwise_conv2': 'pwconv2',
        'gamma': 'gamma',
    })
DINOV2 = Layout(
    publisher='Dinov2Model, with registers or without',
    mark='encoder.layer.0.layer_scale1.lambda1',
    stem={
        'embeddings.cls_token': 'cls_token',
        'embeddings.mask_token': 'mask_token',
        'embeddings.register_tokens': 'register_tokens',
        'embeddings.position_embeddings': 'pos_embed',
        'embeddings.patch_embeddings.projection': 'patch_embed.proj',
        'layernorm': 'norm',
    },
    blocks='encoder.layer.{}',
    layers='blocks.{}',
    parts={
        **_BLOCK,
        **_ATTENTION,
        **_ATTENTION_5, 'mlp.fc1': 'mlp.fc1',
        'mlp.fc2': 'mlp.fc2',
        'mlp.weights_in': 'mlp.w12',
        'mlp.weights_out': 'mlp.w3'
    })
VIT = Layout(
    publisher='ViTModel and DeiTModel',
    mark='encoder.layer.0.attention.attention.key.bias',  # BEiT has none
    stem={
        'embeddings.cls_token': 'cls_token',
        'embeddings.distillation_token': 'dist_token',
        'embeddings.position_embeddings': 'pos_embed',
        'embeddings.patch_embeddings.projection': 'patch_embed.proj',
        'layernorm': 'norm',
    },
    blocks='encoder.layer.{}',
    layers='blocks.{}',
    parts={
        'layernorm_before': 'norm1',
        'layernorm_after': 'norm2',
        **_ATTENTION, 'intermediate.dense': 'mlp.fc1',
        'output.dense': 'mlp.fc2'
    })
CONVNEXT = Layout(
    publisher='ConvNextModel and ConvNextV2Model',
    mark='encoder.stages.0.layers.0.dwconv.weight',
    stem={
        'embeddings.patch_embeddings': f'{_DOWN}.0.0',
        'embeddings.layernorm': f'{_DOWN}.0.1',
        'layernorm': 'norm',
        **{f'encoder.stages.{stage}.downsampling_layer.{part}':
           f'{_DOWN}.{stage}.{part}'
           for stage in range(1, 4) for part in range(2)}
    },
    blocks='encoder.stages.{}.layers.{}',
    layers='stages.{}.{}',
    parts={
        'dwconv': 'dwconv',
        'layernorm': 'norm',
        'pwconv1': 'pwconv1',
        'pwconv2': 'pwconv2',
        'grn.weight': 'grn.gamma',
        'grn.bias': 'grn.beta',
        'layer_scale_parameter': 'gamma',
    })
CLIP = Layout(
    publisher='CLIPVisionModel and SiglipVisionModel',
    mark='embeddings.patch_embedding.weight',
    stem={
        'embeddings.class_embedding': 'cls_token',
        'embeddings.patch_embedding': 'patch_embed.proj',
        'embeddings.position_embedding.weight': 'pos_embed',
        'pre_layrnorm': 'norm_pre',
        'post_layernorm': 'norm',
        'head.probe': 'attn_pool.latent',
        'head.attention.in_proj_weight': 'attn_pool.qkv.weight',
        'head.attention.in_proj_bias': 'attn_pool.qkv.bias',
        'head.attention.out_proj': 'attn_pool.proj',
        'head.layernorm': 'attn_pool.norm',
        'head.mlp.fc1': 'attn_pool.mlp.fc1',
        'head.mlp.fc2': 'attn_pool.mlp.fc2',
    },
    blocks='encoder.layers.{}',
    layers='blocks.{}',
    parts={
        'layer_norm1': 'norm1',
        'layer_norm2': 'norm2',
        'self_attn.q_proj': 'attn.q',
        'self_attn.k_proj': 'attn.k',
        'self_attn.v_proj': 'attn.v',
        'self_attn.out_proj': 'attn.proj',
        'mlp.fc1': 'mlp.fc1',
        'mlp.fc2': 'mlp.fc2',
    })


def _no_key_bias(state: StateDict) -> StateDict:
    """The authors keep a bias of the keys, which is masked."""
    for key in [key for key in state if key.endswith('.attn.q.bias')]:
        state.setdefault(
            key.replace('.q.bias', '.k.bias'), torch.zeros_like(state[key]))
    return state


def _with_mask(state: StateDict) -> StateDict:
    """By its mask token timm tells the authors' file."""
    state.setdefault('mask_token', torch.zeros_like(state['cls_token'][:, 0]))
    return state


def _clip_shapes(state: StateDict) -> StateDict:
    """timm has a batch of one, and queries apart from keys and values."""
    for name in {'cls_token', 'pos_embed'} & state.keys():
        state[name] = state[name].reshape(1, -1, state[name].shape[-1])
    for leaf in ('weight', 'bias'):
        qkv = state.pop(f'attn_pool.qkv.{leaf}', None)
        if qkv is not None:
            q, k, v = qkv.chunk(3)
            state[f'attn_pool.q.{leaf}'] = q
            state[f'attn_pool.kv.{leaf}'] = torch.cat([k, v])
    return state


#: Layouts, and what else becomes of their tensors.
LAYOUTS: Tuple[Tuple[Layout, Callable[[StateDict], StateDict]], ...] = (
    (DINOV3, _no_key_bias),
    (DINOV3_GATED, _no_key_bias),
    (DINOV3_CONVNEXT, dict),
    (DINOV2, _with_mask),
    (VIT, dict),
    (CONVNEXT, dict),
    (CLIP, _clip_shapes),
)


def published_names(
        state: Mapping[str, Tensor]) -> Tuple[StateDict, List[str]]:
    """Tensors of transformers in names that timm reads.

    Args:
        state (Mapping): The tensors of a file.

    Returns:
        tuple: The tensors, and names of what is beside the backbone. Those
        of a file of any other library stay as they are.

    Raises:
        ValueError: If the file is cut short, or has several backbones.
    """
    found = {(number, prefix): count
             for number, (layout, _) in enumerate(LAYOUTS)
             for prefix, count in layout.places(state).items()}
    if not found:
        return dict(state), []
    best = [place for place in found if found[place] == max(found.values())]
    if len(best) > 1:
        raise ValueError('it holds several backbones, under '
                         f'{[prefix for _, prefix in best]}: choose one by '
                         '`prefix`')
    (number, prefix), = best
    layout, finish = LAYOUTS[number]
    named, left = {}, []
    for key, tensor in state.items():
        name = key.startswith(prefix) and layout.rename(key[len(prefix):])
        if name:
            named[name] = tensor
        else:
            left.append(key)
    return fuse_qkv(finish(named)), left
