# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""DINOv2 against timm's and Hugging Face's networks."""

import pytest
import torch
from safetensors.torch import save_file

from vim_mm.interchange.trunks import FAMILIES, convert_trunk


@torch.no_grad()
def test_dinov2_computes_what_timm_computes(build_converted, close, tmp_path):
    from timm.models import VisionTransformer
    torch.manual_seed(0)
    twin = VisionTransformer(
        img_size=56,
        patch_size=14,
        embed_dim=128,
        depth=2,
        num_heads=2,
        init_values=1e-5,
        num_classes=0).eval()
    for parameter in twin.parameters():  # LayerScale and biases must matter
        parameter.copy_(0.2 * torch.randn_like(parameter))
    state = twin.state_dict() | {'mask_token': torch.zeros(1, 128)}
    torch.save(state, tmp_path / 'official.pth')
    path = convert_trunk('dinov2', tmp_path / 'official.pth',
                         tmp_path / 'trunk.safetensors')
    net = build_converted(path, out_type='raw').double()
    x = torch.randn(2, 3, 56, 56, dtype=torch.float64)
    expected = twin.double().forward_features(x)
    torch.testing.assert_close(net(x)[0], expected, **close)


@torch.no_grad()
def test_hugging_face_dinov2(build_converted, close, tmp_path):
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    twin = transformers.Dinov2Model(
        transformers.Dinov2Config(
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=56,
            patch_size=14,
            initializer_range=0.2,
            layerscale_value=0.7))
    twin.eval().save_pretrained(tmp_path)
    save_file(twin.state_dict(), tmp_path / 'memory.safetensors')
    x = torch.randn(2, 3, 56, 56, dtype=torch.float64)
    expected = twin.double()(x, output_hidden_states=True).hidden_states[-1]
    # names on disk and in memory differ in some versions of transformers
    for source in ('model.safetensors', 'memory.safetensors'):
        path = convert_trunk('dinov2', tmp_path / source,
                             tmp_path / 'trunk.safetensors')
        net = build_converted(path, out_type='raw').double()
        net.final_norm = False
        torch.testing.assert_close(net(x)[0], expected, **close)


@pytest.mark.parametrize('size', ['small', 'base'])
def test_configs_take_the_converted_tensors(size, check_config):
    from timm import create_model
    with torch.device('meta'):
        twin = create_model(f'vit_{size}_patch14_dinov2')
    converted = FAMILIES['dinov2'].convert(twin.state_dict())
    check_config(f'dinov2_vit-{size[0]}14', converted)
