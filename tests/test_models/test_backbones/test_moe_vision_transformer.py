# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A vision transformer with experts of attention and of MLPs in turn."""

from pathlib import Path

import pytest
import torch
from torch import nn

from _moe import layers_of
from _tiny import ARCH, PATCH, SIZE, fill
from vim_mm.models.backbones import MoEVisionTransformer, find_slots
from vim_mm.models.moe import MoEAttention, MoEMlp, start_from_dense
from vim_mm.models.recompute import Recompute
from vim_mm.models.tasks import select_task
from vim_mm.registry import MODELS

TASKS = ['cls', 'det', 'seg']
SMALL = dict(
    type='vim_mm.MoEVisionTransformer',
    arch=ARCH,
    img_size=SIZE,
    patch_size=PATCH,
    attn=dict(num_experts=6, k=2),
    mlp=dict(num_experts=4, k=2))


def vit(**kwargs) -> MoEVisionTransformer:
    torch.manual_seed(0)
    return MODELS.build(dict(SMALL, **kwargs))


def kinds(trunk: nn.Module) -> list:
    return [(isinstance(layer.attn, MoEAttention),
             any(isinstance(m, MoEMlp) for m in layer.ffn.modules()))
            for layer in trunk.layers]


def test_experts_in_turn() -> None:
    trunk = vit(tasks=TASKS, task='det')
    assert kinds(trunk) == [(True, False), (False, True), (True, False)]
    assert {layer.task for layer in layers_of(trunk)} == {'det'}
    trunk.init_weights()  # routers without bias are none of an MLP's layers
    x = torch.randn(2, 3, SIZE, SIZE)
    y = trunk(x)[-1]
    assert y.shape == (2, 32, 4, 4)
    y.square().mean().backward()
    for layer in layers_of(trunk):
        assert layer.routers['det'].net.weight.grad.any()
        assert not layer.routers['seg'].net.weight.grad.any()
        assert .01 < layer.routers['det'].net.weight.std() < .03
    trunk.eval()
    y = trunk(x)[-1]
    select_task(trunk, 'seg')
    assert not torch.equal(trunk(x)[-1], y)


@pytest.mark.parametrize('kwargs, expected', [
    (dict(attn=False), [(False, False), (False, True), (False, False)]),
    (dict(mlp=False), [(True, False), (False, False), (True, False)]),
])
def test_one_kind_of_experts(kwargs: dict, expected: list) -> None:
    assert kinds(vit(**kwargs)) == expected


def millions(*modules: nn.Module) -> float:
    return sum(p.numel() for m in modules for p in m.parameters()) / 1e6


@pytest.mark.parametrize('arch, dims, attn, head', [
    ('small', 384, (15, 6), 128), ('base', 768, (24, 12), 128)])
def test_sizes_of_mod_squad(arch: str, dims: int, attn: tuple,
                            head: int) -> None:
    """Widths and numbers of experts, and what they add up to."""
    with torch.device('meta'):
        trunk = MoEVisionTransformer(arch, TASKS)
    attention, mlp = layers_of(trunk)[:2]
    assert len(layers_of(trunk)) == 12
    assert (len(attention.experts), attention.k) == attn
    assert attention.experts.hidden == head
    assert attention.kv.weight.shape == (2 * head, dims)
    assert (len(mlp.experts), mlp.k, mlp.experts.hidden) == (16, 4, dims)
    num = attn[0]
    per_pair = (
        num * (2 * dims * head + head + dims) + dims * 2 * head + 2 * head +
        16 * (2 * dims * dims + 2 * dims) + 3 * dims * (num + 16) +
        4 * dims * dims + 4 * dims + 8 * dims * dims + 5 * dims + 8 * dims)
    rest = 16 * 16 * 3 * dims + dims + 197 * dims + dims + 2 * dims
    assert millions(trunk) == pytest.approx((6 * per_pair + rest) / 1e6)


def test_dense_files_lack_attention_experts(tmp_path: Path) -> None:
    dense = vit(attn=False, mlp=False)
    fill(dense, .1)
    trunk = vit()
    with pytest.raises(ValueError, match=r'layers\.0\.attn\.'):
        start_from_dense(trunk, dense)
    start_from_dense(vit(attn=False), dense)


def test_blocks_run_again_in_the_backward_pass() -> None:
    x, grads = torch.randn(2, 3, SIZE, SIZE), []
    for with_cp in (False, True):
        trunk = vit(with_cp=with_cp, drop_path_rate=.5, drop_rate=.1,
                    layer_scale_init_value=.1)
        torch.manual_seed(1)
        loss = sum(y.square().mean() for y in trunk(x))
        grads.append(torch.autograd.grad(
            loss, [p for p in trunk.parameters()], allow_unused=True))
    assert sum(isinstance(m.__dict__.get('forward'), Recompute)
               for m in trunk.modules()) == 3
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(*grads))


def test_slots_and_settings_stay() -> None:
    trunk = vit(layer_scale_init_value=.5, drop_path_rate=.3, qkv_bias=False)
    names = [f'layers.{i}.{part}' for i in range(3) for part in ('attn',
                                                                 'ffn')]
    slots = find_slots(trunk, probe_size=SIZE)
    assert list(slots) == names
    assert {spec.stride for spec in slots.values()} == {PATCH}
    last = trunk.layers[2].attn
    assert last.out_drop.drop_prob == pytest.approx(.3)
    assert last.gamma1.weight.eq(.5).all() and last.kv.bias is None


@pytest.mark.parametrize('kwargs, words', [
    (dict(attn=None), 'needs `attn` and `mlp`'),
    (dict(arch='b', mlp=None), "'b' needs .*'small', 'base'"),
    (dict(attn=dict(num_experts=2, k=3)), '`k` is 3, but there are 2'),
    (dict(mlp=dict(num_experts=2, k=3)), '`k` is 3, but there are 2'),
    (dict(attn=dict(num_experts=2)), '`attn` lacks `k`.*`attn=False`'),
    (dict(mlp={}), '`mlp` lacks `num_experts`'),
    (dict(mlp=16), '`mlp` is 16; give a config'),
    (dict(tasks=TASKS, task='depth'), "no task 'depth'"),
])
def test_mistakes(kwargs: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        vit(**kwargs)
