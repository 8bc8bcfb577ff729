# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Towers are found wherever published files keep them."""

from pathlib import Path

import pytest
import timm
import torch
from _weights import drawn
from safetensors.torch import load_file, save_file
from timm.models import VisionTransformer
from torch import Tensor

from vim_mm.interchange.trunks import ConversionError, convert_trunk

TINY = dict(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1)
#: Kind of file to the family that reads it, and arguments of timm's model.
NETS = {
    'timm-vit': {},
    'clip': dict(pre_norm=True, norm_layer=torch.nn.LayerNorm),
    'dinov2': dict(init_values=1e-5),
}
#: What is put before the tower's names, and what else is in the file.
PLACES = dict(
    bare=('', []),
    ddp=('module.', []),
    mm=('backbone.', ['head.fc.weight', 'decode_head.conv.weight']),
    open_clip=('visual.trunk.', [
        'visual.head.proj.weight', 'logit_scale',
        'transformer.resblocks.0.ln_1.weight'
    ]),
    wrapped=('module.model.encoder.', ['module.ema.step']),
    whole=('model.', ['model.head.weight', 'model.head.bias']))


def tower(family: str) -> dict[str, Tensor]:
    kwargs = dict(TINY, num_classes=0, **NETS[family])
    return drawn(VisionTransformer(**kwargs)).state_dict()


def write(state: dict[str, Tensor], path: Path, place: str) -> Path:
    prefix, others = PLACES[place]
    whole = {f'{prefix}{key}': value for key, value in state.items()}
    whole.update((key, torch.zeros(3)) for key in others)
    save_file(whole, path)
    return path


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('family', NETS)
@torch.no_grad()
def test_any_place(tmp_path: Path, build_converted, close, family: str,
                   place: str) -> None:
    state = tower(family)
    file = write(state, tmp_path / 'file.safetensors', place)
    path = convert_trunk(family, file, tmp_path / 'trunk.safetensors')
    twin = drawn(
        VisionTransformer(**dict(TINY, num_classes=0, **NETS[family])))
    twin.load_state_dict(state)
    if family == 'clip':
        for block in twin.blocks:
            block.mlp.act = timm.layers.QuickGELU()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    net = build_converted(path, out_type='raw').double()
    torch.testing.assert_close(
        net(x)[0],
        twin.double().forward_features(x), **close)


def test_timm_clip_as_published(tmp_path: Path) -> None:
    """With the projection in the place of a classifier."""
    net = timm.create_model(
        'vit_base_patch16_clip_quickgelu_224',
        num_classes=32,
        **dict(TINY, patch_size=8))
    save_file(net.state_dict(), tmp_path / 'timm.safetensors')
    path = convert_trunk('clip', tmp_path / 'timm.safetensors',
                         tmp_path / 'trunk.safetensors')
    found = load_file(path)
    assert torch.equal(found['pre_norm.weight'], net.norm_pre.weight)
    assert not any('head' in key for key in found)


def test_openais_tower_alone(tmp_path: Path) -> None:
    """``model.visual.state_dict()`` has no prefix."""
    state = {
        'class_embedding': torch.rand(64),
        'positional_embedding': torch.rand(17, 64),
        'proj': torch.rand(64, 32),
        'conv1.weight': torch.rand(64, 3, 8, 8),
    }
    sizes = {
        'ln_1': (64, ),
        'ln_2': (64, ),
        'attn.in_proj_': (192, 64),
        'attn.out_proj': (64, 64),
        'mlp.c_fc': (256, 64),
        'mlp.c_proj': (64, 256)
    }
    for name, shape in sizes.items():
        dot = '' if name.endswith('_') else '.'
        key = f'transformer.resblocks.0.{name}{dot}'
        state[f'{key}weight'] = torch.rand(*shape)
        state[f'{key}bias'] = torch.rand(shape[0])
    for name in ('ln_pre', 'ln_post'):
        state[f'{name}.weight'] = state[f'{name}.bias'] = torch.rand(64)
    files = []
    for prefix in ('', 'visual.'):
        path = tmp_path / 'clip.pth'
        torch.save({f'{prefix}{k}': v for k, v in state.items()}, path)
        files.append(
            load_file(convert_trunk('clip', path, tmp_path / 't.safetensors')))
    bare, whole = files
    assert bare.keys() == whole.keys() and len(bare) == 19
    assert all(torch.equal(bare[key], whole[key]) for key in bare)


@pytest.mark.parametrize('layout', ['timm-vit', 'vit'])
def test_mae_with_its_decoder(tmp_path: Path, layout: str) -> None:
    if layout == 'timm-vit':  # the names of its authors
        state = tower(layout)
        plain = dict(state)
        for key in list(state):
            if key.startswith('blocks.0'):
                state[f'decoder_{key}'] = state[key] + 1
        for key in ('mask_token', 'decoder_pos_embed', 'decoder_embed.weight',
                    'decoder_norm.weight', 'decoder_pred.bias'):
            state[key] = torch.zeros(1, 1, 3)
    else:
        transformers = pytest.importorskip('transformers')
        sizes = dict(
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=128,
            decoder_hidden_size=32,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=1,
            decoder_intermediate_size=64,
            image_size=32,
            patch_size=8)
        net = transformers.ViTMAEForPreTraining(
            transformers.ViTMAEConfig(**sizes))
        state = net.state_dict()
        plain = {k: v for k, v in state.items() if k.startswith('vit.')}
    found = []
    for tensors in (plain, state):
        torch.save(dict(model=tensors), tmp_path / 'mae.pth')
        path = convert_trunk(layout, tmp_path / 'mae.pth',
                             tmp_path / 't.safetensors')
        found.append(load_file(path))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


def test_one_of_two_towers_is_the_users_choice(tmp_path: Path) -> None:
    state = tower('timm-vit')
    two = {f'{side}.{k}': v for side in 'ab' for k, v in state.items()}
    torch.save(two, tmp_path / 'two.pth')
    with pytest.raises(ConversionError, match=r"\['a\.', 'b\.'\]"):
        convert_trunk('timm-vit', tmp_path / 'two.pth',
                      tmp_path / 't.safetensors')


SMALL = dict(embed_dim=64, depth=1, num_heads=1, img_size=32, patch_size=8)


@pytest.mark.parametrize('name, family, hint', [
    ('vit_base_patch16_clip_224', 'timm-vit',
     r"family 'clip' \(OpenAI's weights\) or 'clip-gelu' \(others'\)$"),
    ('vit_small_patch14_dinov2', 'timm-vit', "family 'dinov2'"),
    ('vit_small_patch14_reg4_dinov2', 'dinov2', 'mmpretrain.TIMMBackbone'),
    ('vit_base_patch16_siglip_224', 'timm-vit', 'mmpretrain.TIMMBackbone'),
    ('eva02_tiny_patch14_224', 'timm-vit', 'mmpretrain.TIMMBackbone'),
    ('vit_small_patch16_dinov3_qkvb', 'timm-vit', 'mmpretrain.TIMMBackbone'),
    ('deit_tiny_distilled_patch16_224', 'timm-vit', 'TIMMBackbone'),
    ('vit_base_patch16_rope_224', 'timm-vit', 'TIMMBackbone'),
    # no class token has a position: as many tokens as no square and one more
    ('deit3_small_patch16_224', 'timm-vit', 'TIMMBackbone'),
    ('deit3_small_patch16_224', 'dinov2', "'pos_embed' has 16.*TIMMBackbone"),
    # the family is another
    ('vit_base_patch16_224', 'clip', "family 'timm-vit'$"),
    ('vit_base_patch16_224', 'mmpretrain', "family 'timm-vit'$"),
    ('vit_base_patch16_224', 'timm-davit', "family 'timm-vit'$"),
    ('vit_small_patch14_dinov2', 'vit', "family 'dinov2'$"),
])
def test_what_stays_refused_gets_a_hint_that_fits(tmp_path: Path, name: str,
                                                  family: str,
                                                  hint: str) -> None:
    with torch.device('cpu'):
        net = timm.create_model(name, **SMALL)
    save_file(net.state_dict(), tmp_path / 'timm.safetensors')
    with pytest.raises(ConversionError, match=hint):
        convert_trunk(family, tmp_path / 'timm.safetensors',
                      tmp_path / 't.safetensors')
