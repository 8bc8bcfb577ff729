# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Plain vision transformers against timm's and Hugging Face's networks."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vim_mm.interchange.trunks import FAMILIES, convert_trunk
from vim_mm.interchange.trunks.sources import ConversionError


@torch.no_grad()
def test_timm(build_converted, close, tmp_path):
    from timm.models import VisionTransformer
    torch.manual_seed(0)
    twin = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=128, depth=2, num_heads=2,
        num_classes=3).eval()
    for parameter in twin.parameters():
        parameter.copy_(0.2 * torch.randn_like(parameter))
    save_file(twin.state_dict(), tmp_path / 'timm.safetensors')
    path = convert_trunk('timm-vit', tmp_path / 'timm.safetensors',
                         tmp_path / 'trunk.safetensors')
    net = build_converted(path, out_type='raw').double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = twin.double().forward_features(x)
    torch.testing.assert_close(net(x)[0], expected, **close)


@pytest.mark.parametrize('head', [False, True])
@torch.no_grad()
def test_hugging_face(head, build_converted, close, tmp_path):
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    kind = (transformers.ViTForImageClassification
            if head else transformers.ViTModel)
    twin = kind(
        transformers.ViTConfig(
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=512,
            image_size=32,
            patch_size=8,
            initializer_range=0.2)).eval()
    twin.save_pretrained(tmp_path)
    path = convert_trunk('vit', tmp_path / 'model.safetensors',
                         tmp_path / 'trunk.safetensors')
    net = build_converted(path, out_type='raw').double()
    body = (twin.vit if head else twin).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = body(x).last_hidden_state
    torch.testing.assert_close(net(x)[0], expected, **close)


def test_layer_scale_does_not_fit(tmp_path):
    from timm.models import VisionTransformer
    twin = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=128, depth=1, num_heads=2,
        init_values=1e-5)
    save_file(twin.state_dict(), tmp_path / 'timm.safetensors')
    with pytest.raises(ConversionError, match='ls1.gamma.*have no place'):
        convert_trunk('timm-vit', tmp_path / 'timm.safetensors',
                      tmp_path / 'trunk.safetensors')
    assert not (tmp_path / 'trunk.safetensors').exists()


def test_the_config_takes_the_converted_tensors(check_config):
    from timm import create_model
    with torch.device('meta'):
        twin = create_model('vit_base_patch16_224')
    converted = FAMILIES['timm-vit'].convert(twin.state_dict())
    check_config('vit-b16', converted)


@pytest.mark.parametrize('name', [
    'vit_tiny_patch16_224', 'vit_large_patch16_224', 'vit_huge_patch14_224',
    'vit_giant_patch14_224', 'vit_gigantic_patch14_224'
])
def test_heads_which_no_tensor_tells(name):
    from timm import create_model
    with torch.device('meta'):
        twin = create_model(name, num_classes=0)
    family = FAMILIES['timm-vit']
    arch = family.backbone(family.convert(twin.state_dict()))['arch']
    assert arch['num_heads'] == twin.blocks[0].attn.num_heads


def test_clip_with_plain_gelu_says_so(tmp_path):
    transformers = pytest.importorskip('transformers')
    sizes = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=1,
                 intermediate_size=128, image_size=16, patch_size=8)
    net = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes))
    net.save_pretrained(tmp_path)
    found = {}
    for family in ('clip', 'clip-gelu'):
        path = convert_trunk(family, tmp_path / 'model.safetensors',
                             tmp_path / f'{family}.safetensors')
        with safe_open(path, 'pt') as file:
            found[family] = json.loads(file.metadata()['backbone'])
    gelu = found['clip-gelu'].pop('layer_cfgs')
    quick = found['clip'].pop('layer_cfgs')
    assert found['clip'] == found['clip-gelu']
    assert quick == dict(act_cfg=dict(type='mmpretrain.QuickGELU'))
    assert gelu == dict(act_cfg=dict(type='GELU'))
