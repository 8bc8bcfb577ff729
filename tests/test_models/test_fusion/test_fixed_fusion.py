# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Given weights, of outputs and of parameters."""

import pytest
import torch

from _tiny import SIZE, add_modules, build_backbone, occupy
from vim_mm.models.fusion import FixedFusion, FixedMerge

NAMES = ['a', 'b', 'c', 'd']


def test_fixed_weights_are_taken_as_given() -> None:
    modules = occupy(NAMES, 4, 4)
    fusion = FixedFusion(
        modules, tasks=dict(t=['d', 'a']), weights=dict(a=0.5, b=3, d=-1))
    assert torch.equal(fusion.gates('t'), torch.tensor([[-1, .5]] * 2))
    uniform = FixedFusion(modules, tasks=dict(t=['d', 'a']))
    assert torch.equal(uniform.gates('t'), torch.full((2, 2), .5))
    assert not list(fusion.parameters()) and not fusion.state_dict()
    with pytest.raises(ValueError, match=r"Weights are given for \['z'\]"):
        FixedFusion(modules, weights=dict(z=1.))


def pictures() -> torch.Tensor:
    return torch.randn(
        2, 3, SIZE, 70, generator=torch.Generator().manual_seed(0))


def test_a_merge_by_given_weights_is_one_module_of_summed_parameters() -> None:
    backbone = build_backbone()
    add_modules(backbone, 'a', 'b', 'c')
    weights = dict(a=0.5, b=1.5, c=-0.25)
    backbone.set_fusion(dict(type='FixedMerge', weights=weights))
    assert isinstance(backbone.fusion, FixedMerge) and FixedMerge.merges
    fused = backbone(pictures())

    parts = {name: backbone.bank.export(name) for name in 'abc'}
    total = {
        key: sum(weights[name] * parts[name][key] for name in 'abc')
        for key in parts['a']
    }
    backbone.bank.add(
        'sum', dict(type='ConvPass', hidden_dims=4),
        {name: slot.dims for name, slot in backbone.slots.items()}, total)
    with backbone.only('sum'):
        torch.testing.assert_close(
            fused, backbone(pictures()), rtol=1e-4, atol=1e-4)
    # another function than the sum of outputs
    tasks = dict(default=list('abc'))
    backbone.set_fusion(
        dict(type='FixedFusion', weights=weights, tasks=tasks))
    assert not torch.allclose(backbone(pictures())[-1], fused[-1], atol=1e-2)
