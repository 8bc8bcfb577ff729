# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Any trunk with experts in the place of its MLPs."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from _moe import DENSE, REFUSED, layers_of, make_uniform, side_of
from _tiny import fill, vit
from vim_mm.models.layouts import as_levels
from vim_mm.models.moe import MoEMlp, Moved, find_ffns, to_moe
from vim_mm.models.recompute import Recompute
from vim_mm.registry import MODELS
from vim_mm.utils.arguments import arguments_of


def dense_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    trunk = MODELS.build(dict(DENSE[name]))
    with torch.no_grad():
        for param in trunk.parameters():
            param.add_(.05 * torch.randn_like(param))
    trunk.eval()
    return trunk


def images(name: str) -> Tensor:
    return torch.randn(2, 3, side_of(name), side_of(name))


@pytest.mark.parametrize('name', DENSE)
def test_trunks(name: str) -> None:
    """With uniform routers and all experts they are what they were."""
    dense, x = dense_of(name), images(name)
    with torch.no_grad():
        expected = as_levels(dense(x))
    # 6 experts hold 2 slices: three each; 5 hold them unequally often
    for num, slices in ((6, 2), (5, 2), (4, 4)):
        trunk = to_moe(deepcopy(dense), num, num, slices=slices)
        make_uniform(trunk)
        with torch.no_grad():
            outputs = as_levels(trunk(x))
        for ours, theirs in zip(outputs, expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', DENSE)
def test_gradients_reach_routers_and_experts(name: str) -> None:
    dense, x = dense_of(name), images(name)
    shapes = [y.shape for y in as_levels(dense(x))]
    trunk = to_moe(dense, 6, 2, tasks=['a', 'b'], task='b')
    levels = as_levels(trunk(x))
    assert [y.shape for y in levels] == shapes
    sum(y.square().mean() for y in levels).backward()
    found = layers_of(trunk)
    assert len(found) >= 2
    for layer in found:
        assert layer.task == 'b' and layer.gate_scale == 3
        weights = [router.net[0].weight for router in layer.routers.values()]
        assert not weights[0].grad.any() and weights[1].grad.any()
        assert all(p.grad.any() for p in layer.experts.parameters())


@pytest.mark.parametrize('name', REFUSED)
def test_trunks_without_mlps(name: str) -> None:
    cfg, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        to_moe(dict(cfg), 4, 2)


@pytest.mark.parametrize('ffns, places', [
    (r'layers\.[02]\.ffn', [0, 2]),
    ([r'layers\.1', r'layers\.2\.ffn'], [1, 2]),
    (r'layers\.1(\.ffn)?', [1]),
    ('auto', [0, 1, 2]),
])
def test_patterns(ffns, places) -> None:
    trunk = to_moe(vit(), 4, 2, ffns=ffns)
    names = [n for n, m in trunk.named_modules() if isinstance(m, MoEMlp)]
    assert names == [f'layers.{i}.ffn.layers.0.0' for i in places]


@pytest.mark.parametrize('kwargs, words', [
    (dict(num_experts=0), '`num_experts` is 0; give a whole number'),
    (dict(num_experts=4.), r'`num_experts` is 4\.0; give a whole number'),
    (dict(k=5), '`k` is 5, but there are 4 experts; give 1 to 4'),
    (dict(k=0), '`k` is 0; give a whole number'),
    (dict(k='2'), "`k` is '2'; give a whole number"),
    (dict(slices=5), '`slices` is 5, but there are 4'),
    (dict(slices=0), '`slices` is 0; give'),
    (dict(k=3), r"64 hidden units of 'layers\.0\.ffn\.layers\.0\.0'.*3 sl"),
    (dict(ffns=r'layers\.9'), "FFN pattern .* matches no submodule"),
    (dict(ffns='('), 'no regular expression'),
    (dict(ffns=''), "`ffns` is '', so no MLP .* would become experts"),
    (dict(ffns=[]), r'`ffns` is \[\], so no MLP'),
    (dict(ffns=None), '`ffns` is None, so no MLP'),
    (dict(ffns='layers'), "'layers' .* holds 3 MLPs.*'layers.0.ffn.layers'"),
    (dict(ffns=r'layers\.1\.attn'), r"attn' \(MultiheadAttention\) cannot "
     r'become experts.*32 -> 96, 32 -> 32'),
    (dict(ffns='patch_embed'), 'its linear layers are none'),
    (dict(tasks=['a', 'b'], task='c'), "no task 'c'"),
    (dict(tasks='ab'), r"`tasks` is the name 'ab'; give .*\['ab'\]"),
    (dict(tasks=['a', 'b', 'a']), "`tasks` names 'a' twice"),
    (dict(tasks=[1]), "'1' cannot name a task"),
    (dict(router='deep'), "'linear' or 'mlp'"),
    (dict(gate_scale='best'), "`gate_scale` is 'best'; give a number"),
    (dict(gate_scale=-1.), r'`gate_scale` is -1\.0; give'),
    (dict(perturb=-.1), r'`perturb` is -0\.1; give'),
])
def test_mistakes_change_nothing(kwargs: dict, words: str) -> None:
    trunk = MODELS.build(vit())
    before = repr(trunk)
    with pytest.raises(ValueError, match=words):
        to_moe(trunk, **dict(dict(num_experts=4, k=2), **kwargs))
    assert repr(trunk) == before


class Odd(nn.Module):
    """MLPs that libraries write in other ways."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act
        self.fc1 = nn.Linear(8, 16, bias=False)
        self.fc2 = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Squared(nn.Module):
    """An activation with a part."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x).square()


@pytest.mark.parametrize('act', [nn.SiLU(), Squared()], ids=['silu', 'own'])
def test_activations_listed_first_and_of_parts(act: nn.Module) -> None:
    dense = nn.Sequential(Odd(act), Odd(deepcopy(act)))
    fill(dense, .3)
    x = torch.randn(5, 8)
    expected = dense(x)
    trunk = to_moe(dense, 4, 4, slices=2)
    make_uniform(trunk)
    torch.testing.assert_close(trunk(x), expected)


@pytest.mark.parametrize('act', [nn.LayerNorm(16, elementwise_affine=False),
                                 nn.PReLU(), nn.Softmax(-1), nn.GLU()])
def test_layers_that_are_no_activation(act: nn.Module) -> None:
    with pytest.raises(ValueError, match='has no MLP'):
        find_ffns(nn.Sequential(Odd(act)))


def test_an_activation_with_parts_and_parameters() -> None:
    from timm.models.metaformer import StarReLU
    fc1, fc2 = nn.Linear(8, 16), nn.Linear(16, 8)
    with pytest.raises(ValueError, match=r"'1' \(StarReLU\) works on its"):
        find_ffns(nn.Sequential(fc1, StarReLU(), fc2))


def test_dropout_of_hidden_units_goes_with_them() -> None:
    trunk = to_moe(vit(drop_rate=.25), 4, 2)
    act = layers_of(trunk)[0].experts.act
    assert [type(m).__name__ for m in act] == ['GELU', 'Dropout']
    ffn = trunk.layers[0].ffn.layers
    assert [type(m) for m in (ffn[0][1], ffn[0][2], ffn[1])] == [Moved] * 3
    # that of the outputs stays
    assert ffn[2].p == .25


@pytest.mark.parametrize('name', ['swin', 'mmdet_swin', 'convnext', 'davit'])
def test_reentrant_checkpoints_become_plain_ones(name: str) -> None:
    """In those, nobody could record what routers give."""
    x, grads = images(name), []
    for with_cp in (False, True):
        torch.manual_seed(0)
        trunk = to_moe(dict(DENSE[name], with_cp=with_cp), 4, 2)
        torch.manual_seed(0)
        seen = []
        for layer in layers_of(trunk):
            layer.router.register_forward_hook(
                lambda *args: seen.append(args[-1]))
        loss = sum(y.square().mean() for y in as_levels(trunk(x)))
        loss = loss + sum(p.square().mean() for p in seen)
        grads.append(torch.autograd.grad(loss, list(trunk.parameters())))
    assert any(isinstance(m.__dict__.get('forward'), Recompute)
               for m in trunk.modules())
    assert not any(getattr(m, 'with_cp', False) for m in trunk.modules())
    torch.testing.assert_close(*grads)


def test_a_frozen_trunk_gets_frozen_experts() -> None:
    trunk = MODELS.build(vit())
    trunk.requires_grad_(False)
    trunk.eval()
    to_moe(trunk, 4, 2)
    assert not any(p.requires_grad for p in trunk.parameters())
    assert not any(m.training for m in trunk.modules())


def test_a_registry_knows_its_arguments() -> None:
    assert 'tasks' in arguments_of(MODELS.get('vim_mm.to_moe'))
    with torch.device('meta'):
        trunk = MODELS.build(
            dict(type='vim_mm.to_moe', trunk=vit(), num_experts=4, k=2))
    assert all(p.is_meta for p in trunk.parameters())


@pytest.mark.parametrize('num_experts, slices', [(8, 4), (8, 2), (4, 1)])
@pytest.mark.parametrize('router', ['linear', 'mlp'])
def test_a_token_starts_with_a_whole_mlp(num_experts: int, slices: int,
                                         router: str) -> None:
    """Each slice of the hidden units once, of a copy that the token chose."""
    torch.manual_seed(0)
    dense = MODELS.build(DENSE['vit'])
    trunk = to_moe(
        deepcopy(dense), num_experts, slices, router=router, tasks=['a', 'b'])
    layer = layers_of(trunk)[0]
    p = layer.router(torch.randn(200, layer.dims))
    index = layer.choose(p)[1]
    every = torch.arange(slices).expand(200, -1)
    assert torch.equal((index % slices).sort(1).values, every)
    assert torch.equal(index.min(1).values, index.max(1).values - slices + 1)
    # not all tokens choose the same copy
    assert len(set(index.min(1).values.tolist())) == num_experts // slices
