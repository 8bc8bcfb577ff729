# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""CLIP against a plain reference of OpenAI's visual tower, and others."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from vim_mm.interchange.trunks import FAMILIES, convert_trunk

StateDict = dict[str, Tensor]


def random_clip(dims: int, depth: int, patch: int, grid: int,
                device: str = 'cpu') -> StateDict:
    """Tensors of OpenAI's layout, text tower included."""
    g = torch.Generator().manual_seed(0)

    def rand(*shape: int, center: float = 0.) -> Tensor:
        if device == 'meta':
            return torch.empty(shape, device=device)
        return center + 0.2 * torch.randn(shape, generator=g)

    state = {
        'logit_scale': rand(1),
        'ln_final.weight': rand(dims),
        'transformer.resblocks.0.ln_1.weight': rand(dims),
        'visual.proj': rand(dims, 32),
        'visual.class_embedding': rand(dims),
        'visual.positional_embedding': rand(1 + grid * grid, dims),
        'visual.conv1.weight': rand(dims, 3, patch, patch)
    }
    norms = ['visual.ln_pre', 'visual.ln_post']
    linears = {}
    for i in range(depth):
        block = f'visual.transformer.resblocks.{i}.'
        norms += [block + 'ln_1', block + 'ln_2']
        state[block + 'attn.in_proj_weight'] = rand(3 * dims, dims)
        state[block + 'attn.in_proj_bias'] = rand(3 * dims)
        linears[block + 'attn.out_proj'] = dims, dims
        linears[block + 'mlp.c_fc'] = 4 * dims, dims
        linears[block + 'mlp.c_proj'] = dims, 4 * dims
    for name in norms:
        state[f'{name}.weight'] = rand(dims, center=1.)
        state[f'{name}.bias'] = rand(dims)
    for name, shape in linears.items():
        state[f'{name}.weight'] = rand(*shape)
        state[f'{name}.bias'] = rand(shape[0])
    return state


def clip_forward(state: StateDict, x: Tensor, patch: int) -> list[Tensor]:
    """CLIP's visual tower head by head: every block, then ``ln_post``."""
    w = {k.removeprefix('visual.'): v for k, v in state.items()}
    dims = w['class_embedding'].numel()

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(
            x, (dims, ), w[f'{name}.weight'], w[f'{name}.bias'], eps=1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f'{name}.weight'].T + w[f'{name}.bias']

    x = F.conv2d(x, w['conv1.weight'], stride=patch).flatten(2).mT
    x = torch.cat([w['class_embedding'].expand(len(x), 1, dims), x], dim=1)
    x = norm(x + w['positional_embedding'], 'ln_pre')
    outs = []
    for i in range(2):
        name = f'transformer.resblocks.{i}.'
        qkv = norm(x, name + 'ln_1') @ w[name + 'attn.in_proj_weight'].T
        q, k, v = (qkv + w[name + 'attn.in_proj_bias']).split(dims, dim=2)
        heads = []
        for h in range(0, dims, 64):
            part = slice(h, h + 64)
            score = q[..., part] @ k[..., part].mT / 8
            heads.append(score.softmax(-1) @ v[..., part])
        x = x + linear(torch.cat(heads, 2), name + 'attn.out_proj')
        y = linear(norm(x, name + 'ln_2'), name + 'mlp.c_fc')
        x = x + linear(y * torch.sigmoid(1.702 * y), name + 'mlp.c_proj')
        outs.append(x)
    return [*outs, norm(x, 'ln_post')]


@pytest.fixture(scope='module')
def clip_file(tmp_path_factory) -> tuple[StateDict, Path]:
    """A tiny random CLIP in OpenAI's layout, and its converted file."""
    folder = tmp_path_factory.mktemp('clip')
    state = random_clip(dims=128, depth=2, patch=8, grid=4)
    save_file(state, folder / 'openai.safetensors')
    return state, convert_trunk('clip', folder / 'openai.safetensors',
                                folder / 'trunk.safetensors')


@torch.no_grad()
def test_clip_computes_what_openai_computes(clip_file, build_converted, close):
    state, path = clip_file
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    first, last, normed = clip_forward(
        {k: v.double() for k, v in state.items()}, x, patch=8)
    net = build_converted(path, out_indices=[0, 1], out_type='raw').double()
    torch.testing.assert_close(net(x), (first, normed), **close)
    net.final_norm = False
    torch.testing.assert_close(net(x), (first, last), **close)


def test_clip_layouts_give_the_same_file(clip_file, tmp_path):
    names = {
        'ln_1': 'layer_norm1',
        'ln_2': 'layer_norm2',
        'attn.out_proj': 'self_attn.out_proj',
        'mlp.c_fc': 'mlp.fc1',
        'mlp.c_proj': 'mlp.fc2',
        'transformer.resblocks': 'encoder.layers',
        'ln_pre': 'pre_layrnorm',
        'ln_post': 'post_layernorm',
        'conv1': 'embeddings.patch_embedding',
        'class_embedding': 'embeddings.class_embedding',
        'positional_embedding': 'embeddings.position_embedding.weight',
    }
    state, path = clip_file
    theirs = {'text_model.final_layer_norm.bias': torch.zeros(3)}
    for key, tensor in state.items():
        if not key.startswith('visual.') or key == 'visual.proj':
            continue
        for ours, other in names.items():
            key = key.replace(ours, other)
        key = key.replace('visual', 'vision_model')
        if 'in_proj' in key:
            for x, part in zip('qkv', tensor.chunk(3)):
                new = key.replace('attn.in_proj_', f'self_attn.{x}_proj.')
                theirs[new] = part.clone()
        else:
            theirs[key] = tensor
    save_file(theirs, tmp_path / 'hf.safetensors')
    convert_trunk('clip', tmp_path / 'hf.safetensors',
                  tmp_path / 'trunk.safetensors')
    ours, other = load_file(path), load_file(tmp_path / 'trunk.safetensors')
    assert ours.keys() == other.keys()
    assert all(torch.equal(ours[k], other[k]) for k in ours)


@torch.no_grad()
def test_hugging_face_clip(build_converted, close, tmp_path):
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    twin = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=56,
            patch_size=14,
            initializer_range=0.2,
            intermediate_size=512))
    twin.eval().save_pretrained(tmp_path)
    save_file(twin.state_dict(), tmp_path / 'memory.safetensors')
    x = torch.randn(2, 3, 56, 56, dtype=torch.float64)
    expected = twin.double()(x, output_hidden_states=True).hidden_states[-1]
    # names on disk and in memory differ in some versions of transformers
    for source in ('model.safetensors', 'memory.safetensors'):
        path = convert_trunk('clip', tmp_path / source,
                             tmp_path / 'trunk.safetensors')
        net = build_converted(path, out_type='raw').double()
        net.final_norm = False
        torch.testing.assert_close(net(x)[0], expected, **close)


def test_config_takes_the_converted_tensors(check_config):
    published = random_clip(
        dims=768, depth=12, patch=16, grid=14, device='meta')
    check_config('clip_vit-b16', FAMILIES['clip'].convert(published))
