# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""DaViT against timm's network, on images of any size."""

import pytest
import torch
from safetensors.torch import save_file

from vim_mm.interchange.trunks import FAMILIES, convert_trunk
from vim_mm.interchange.trunks.sources import ConversionError


@pytest.fixture(scope='module')
def twin() -> torch.nn.Module:
    from timm.models.davit import DaVit
    torch.manual_seed(0)
    twin = DaVit(
        depths=(1, 1, 2, 1),
        embed_dims=(32, 64, 128, 256),
        num_heads=(1, 2, 4, 8),
        num_classes=3).eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return twin


@pytest.fixture(scope='module')
def path(twin, tmp_path_factory):
    folder = tmp_path_factory.mktemp('davit')
    save_file(twin.state_dict(), folder / 'timm.safetensors')
    return convert_trunk('timm-davit', folder / 'timm.safetensors',
                         folder / 'trunk.safetensors')


@pytest.fixture(scope='module')
def net(path, build_converted):
    # norms of other stages than the file's last one are left as they are
    net = build_converted(path, out_indices=(0, 1, 2, 3)).double()
    for stage in range(4):
        setattr(net, f'norm{stage}', torch.nn.Identity())
    return net


@pytest.mark.parametrize('size', [(200, 300), (224, 300), (224, 224),
                                  (223, 224), (224, 225), (225, 225),
                                  (33, 61), (32, 32), (5, 4)],
                         ids=str)
@torch.no_grad()
def test_maps_are_those_of_timm(size, twin, net, close):
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    expected = twin.double().forward_intermediates(x, intermediates_only=True)
    maps = net(x)
    assert len(maps) == 4
    for ours, theirs in zip(maps, expected):
        torch.testing.assert_close(ours, theirs, **close)


def test_other_families_do_not_fit(tmp_path):
    save_file({'blocks.0.norm1.weight': torch.ones(2)},
              tmp_path / 'timm.safetensors')
    with pytest.raises(ConversionError, match='no key.*stem.conv.weight'):
        convert_trunk('timm-davit', tmp_path / 'timm.safetensors',
                      tmp_path / 'trunk.safetensors')


@pytest.mark.parametrize('size', ['tiny', 'small', 'base', 'large'])
def test_heads_which_no_tensor_tells(size):
    from mmpretrain.models.backbones import DaViT
    from timm import create_model
    with torch.device('meta'):
        twin = create_model(f'davit_{size}')
    family = FAMILIES['timm-davit']
    converted = family.convert(twin.state_dict())
    assert family.backbone(converted)['arch'] == DaViT.arch_zoo[size]
