# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Files of transformers load into timm's twins of their networks."""

import tempfile
from pathlib import Path
from typing import Callable, Dict, NamedTuple

import pytest
import timm
import torch
from _weights import drawn, with_file
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from _tiny import same, snapshot
from vim_mm.models.backbones import build_trunk

transformers = pytest.importorskip(
    'transformers', reason='the package transformers is not installed')

SIZE, DIMS = 64, 32


class Twin(NamedTuple):
    """A model of timm, the one of transformers, and how both are built."""

    timm: str
    theirs: str
    config: dict = {}
    sizes: dict = {}
    extra: dict = {}


VIT = dict(
    hidden_size=DIMS,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=4 * DIMS,
    image_size=SIZE,
    patch_size=16)
DINOV3 = dict(VIT, num_register_tokens=4)
TINY = dict(embed_dim=DIMS, depth=2, num_heads=2, img_size=SIZE)
CONVNEXT = dict(depths=[1, 1, 2, 1], hidden_sizes=[8, 8, 16, 16])
TWINS = dict(
    dinov3=Twin('vit_small_patch16_dinov3', 'DINOv3ViT',
                dict(DINOV3, query_bias=False, value_bias=False)),
    dinov3_zero_bias=Twin('vit_small_patch16_dinov3', 'DINOv3ViT', DINOV3),
    dinov3_qkvb=Twin('vit_small_patch16_dinov3_qkvb', 'DINOv3ViT', DINOV3),
    dinov3_gated=Twin('vit_small_plus_patch16_dinov3_qkvb', 'DINOv3ViT',
                      dict(DINOV3, use_gated_mlp=True, hidden_act='silu')),
    dinov3_convnext=Twin('convnext_tiny', 'DINOv3ConvNext', CONVNEXT,
                         dict(depths=[1, 1, 2, 1], dims=[8, 8, 16, 16])),
    dinov2=Twin('vit_base_patch14_dinov2', 'Dinov2', dict(mlp_ratio=4)),
    dinov2_registers=Twin('vit_base_patch14_reg4_dinov2',
                          'Dinov2WithRegisters',
                          dict(mlp_ratio=4, num_register_tokens=4)),
    vit=Twin('vit_tiny_patch16_224', 'ViT'),
    deit=Twin('deit_tiny_distilled_patch16_224', 'DeiT'),
    convnext=Twin('convnext_tiny', 'ConvNext', CONVNEXT,
                  dict(depths=[1, 1, 2, 1], dims=[8, 8, 16, 16])),
    convnext_v2=Twin('convnextv2_tiny', 'ConvNextV2', CONVNEXT,
                     dict(depths=[1, 1, 2, 1], dims=[8, 8, 16, 16])),
    siglip=Twin('vit_base_patch16_siglip_224', 'SiglipVision',
                dict(hidden_act='gelu')),
    siglip2=Twin('vit_base_patch16_siglip_256', 'SiglipVision',
                 extra=dict(act_layer='gelu_tanh')),
    clip=Twin('vit_base_patch16_clip_quickgelu_224', 'CLIPVision'))


class Case(NamedTuple):
    """Both networks with the same drawn numbers."""

    cfg: dict
    theirs: nn.Module
    state: Dict[str, Tensor]


def build(name: str) -> Case:
    twin = TWINS[name]
    cfg = dict(
        type='mmpretrain.TIMMBackbone',
        model_name=twin.timm,
        features_only=True,
        out_indices=(0, 1),
        **twin.extra)
    if twin.sizes:
        cfg.update(twin.sizes, out_indices=(0, 1, 2, 3))
    else:
        cfg.update(TINY)
    if 'dinov2' in name:
        cfg.update(img_size=56)
    if 'dino' in name and not twin.sizes:
        cfg.update(init_values=1.)
    sizes = dict(twin.config) if twin.sizes else dict(VIT, **twin.config)
    if 'dinov2' in name:
        sizes.update(image_size=56, patch_size=14)
        sizes.pop('intermediate_size')
    if 'gated' in name:
        own = timm.create_model(twin.timm, **TINY)
        sizes.update(intermediate_size=own.blocks[0].mlp.fc2.in_features)
    torch.manual_seed(0)
    config = getattr(transformers, f'{twin.theirs}Config')(**sizes)
    theirs = drawn(getattr(transformers, f'{twin.theirs}Model')(config))
    if 'zero' in name:
        for part, param in theirs.named_parameters():
            if part.endswith(('q_proj.bias', 'v_proj.bias')):
                param.zero_()
    with tempfile.TemporaryDirectory() as folder:
        # version 5 has other names in memory
        theirs.save_pretrained(folder)
        state = load_file(Path(folder) / 'model.safetensors')
    return Case(cfg, theirs, state)


@pytest.fixture(scope='module', params=TWINS)
def case(request) -> Case:
    return build(request.param)


def save(state: Dict[str, Tensor], path: Path) -> Path:
    save_file({key: value.clone() for key, value in state.items()}, path)
    return path


@torch.no_grad()
def test_features_are_those_of_transformers(case: Case,
                                            tmp_path: Path) -> None:
    path = save(case.state, tmp_path / 'model.safetensors')
    trunk = build_trunk(with_file(case.cfg, path))
    trunk.eval()
    size = case.cfg.get('img_size', SIZE)
    x = torch.randn(2, 3, size, size, generator=torch.Generator())
    levels = []
    blocks = next(part for name, part in case.theirs.named_modules()
                  if name.endswith(('layers', 'layer', 'stages')))
    for block in blocks:
        block.register_forward_hook(lambda _, __, out: levels.append(
            out[0] if isinstance(out, tuple) else out))
    case.theirs(pixel_values=x)
    for level, right in zip(trunk(x), levels):
        if right.dim() == 3:  # tokens, without those before the patches
            right = right[:, -level[0, 0].numel():].mT.reshape(level.shape)
        assert right.std() > 1e-2
        torch.testing.assert_close(level, right, rtol=1e-4, atol=1e-5)


def test_one_file_whatever_is_around_it(case: Case, tmp_path: Path) -> None:
    """Whole models, wrappers and a head."""
    bare = save(case.state, tmp_path / 'bare.safetensors')
    right = snapshot(build_trunk(with_file(case.cfg, bare)))
    whole = {f'vision.{key}': value for key, value in case.state.items()}
    whole['classifier.weight'] = torch.ones(2, DIMS)
    path = save(whole, tmp_path / 'whole.safetensors')
    assert same(snapshot(build_trunk(with_file(case.cfg, path))), right)
    named = with_file(case.cfg, path, prefix='vision')
    assert same(snapshot(build_trunk(named)), right)


def refused(cfg: dict, state: Dict[str, Tensor], path: Path) -> str:
    save(state, path)
    with pytest.raises(ValueError) as error:
        build_trunk(with_file(cfg, path))
    assert str(path) in str(error.value)
    return str(error.value)


def test_a_file_that_is_cut_short_is_refused(case: Case,
                                             tmp_path: Path) -> None:
    linear = next(key for key in case.state if key.endswith(
        ('k_proj.weight', 'key.weight', 'pointwise_conv2.weight',
         'pwconv2.weight')))
    state = {key: x for key, x in case.state.items() if key != linear}
    assert 'lack' in refused(
        case.cfg, state, tmp_path / 'a.safetensors') or 'short' in refused(
            case.cfg, state, tmp_path / 'a.safetensors')


def test_two_backbones_in_one_file(tmp_path: Path) -> None:
    case = build('siglip')
    both = {
        f'{name}.{key}': value
        for name in ('left', 'right') for key, value in case.state.items()
    }
    said = refused(case.cfg, both, tmp_path / 'both.safetensors')
    assert 'several backbones' in said and 'prefix' in said
    named = with_file(case.cfg, tmp_path / 'both.safetensors', prefix='left')
    bare = save(case.state, tmp_path / 'bare.safetensors')
    assert same(
        snapshot(build_trunk(named)),
        snapshot(build_trunk(with_file(case.cfg, bare))))


# ------------------------------------------------ DINOv3's own files


def metas(state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """DINOv3's own file of a model of timm, keys' bias masked by NaN."""
    own, biases = {}, {}
    for key, value in state.items():
        key = key.replace('gamma_1', 'ls1.gamma').replace(
            'gamma_2', 'ls2.gamma').replace('reg_token', 'storage_tokens')
        if key.endswith(('q_bias', 'v_bias')):
            biases.setdefault(key[:-6], {})[key[-6]] = value
        else:
            own[key] = value
    for block, parts in biases.items():
        own[f'{block}qkv.bias'] = torch.cat(
            [parts['q'], torch.full_like(parts['q'], torch.nan), parts['v']])
    own['mask_token'] = torch.zeros(1, DIMS)
    own['rope_embed.periods'] = torch.ones(4)
    return own


@pytest.mark.parametrize('twin', ['', '_qkvb'])
def test_meta_s_file(tmp_path: Path, twin: str) -> None:
    name = f'vit_small_patch16_dinov3{twin}'
    model = drawn(timm.create_model(name, init_values=1., **TINY))
    cfg = dict(
        type='mmpretrain.TIMMBackbone',
        model_name=name,
        features_only=True,
        init_values=1.,
        out_indices=(0, 1),
        **TINY)
    path = save(metas(model.state_dict()), tmp_path / 'meta.safetensors')
    trunk = build_trunk(with_file(cfg, path))
    right = model.state_dict()
    for key, value in trunk.timm_model.model.state_dict().items():
        assert torch.equal(value, right[key])


@pytest.mark.parametrize('source', [lambda name: build(name).state,
                                    lambda name: metas(
    drawn(timm.create_model('vit_small_patch16_dinov3_qkvb',
                            init_values=1., **TINY)).state_dict())])
def test_biases_are_not_dropped_in_silence(source: Callable,
                                           tmp_path: Path) -> None:
    """timm has a DINOv3 with biases of queries and values, and one without."""
    cfg = build('dinov3').cfg
    state = source('dinov3_qkvb')
    said = refused(cfg, state, tmp_path / 'biased.safetensors')
    assert '_qkvb' in said and 'bias' in said


# ------------------------------------------------------------ RADIO's own


def test_radio_s_file(tmp_path: Path) -> None:
    """timm takes the tower out of RADIO's whole model by its prefix."""
    name = 'vit_base_patch16_radio_v3'
    sizes = dict(embed_dim=DIMS, depth=2, num_heads=2, img_size=SIZE)
    model = drawn(timm.create_model(name, **sizes))
    state, own = model.state_dict(), {}
    for key, value in state.items():
        if key.startswith('blocks.'):
            own[f'radio_model.model.{key.replace("ls1.gamma", "ls1.grandma")}'
                ] = value
    front = 'radio_model.model.patch_generator.'
    own[f'{front}embedder.weight'] = state['patch_embed.proj.weight'].flatten(
        1)
    own[f'{front}pos_embed'] = state['pos_embed']
    own[f'{front}cls_token.token'] = torch.cat(
        [state['cls_token'], state['reg_token']], 1)[0]
    own['radio_model.input_conditioner.norm_mean'] = torch.ones(3, 1, 1)
    path = save(own, tmp_path / 'radio.safetensors')
    cfg = dict(
        type='mmpretrain.TIMMBackbone',
        model_name=name,
        features_only=True,
        dynamic_img_size=True,
        out_indices=(0, 1),
        **sizes)
    found = build_trunk(with_file(cfg, path)).timm_model.model.state_dict()
    assert torch.equal(found['blocks.1.mlp.fc2.weight'],
                       state['blocks.1.mlp.fc2.weight'])
    assert torch.equal(found['reg_token'], state['reg_token'])


def test_other_files_are_left_alone() -> None:
    from vim_mm.models.backbones.hugging_face import published_names
    state = timm.create_model('test_vit').state_dict()
    named, beside = published_names(state)
    assert same(named, state) and not beside
