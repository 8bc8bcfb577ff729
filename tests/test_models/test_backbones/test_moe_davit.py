# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""DaViT with experts: its sizes, files, checkpointing and mistakes."""

from pathlib import Path
from typing import List

import pytest
import torch
from mmengine.registry import MODELS as ROOT
from torch import nn

from _tiny import fill
from vim_mm.models.backbones import MoEDaViT, build_trunk
from vim_mm.models.moe import MoEMlp
from vim_mm.models.recompute import Recompute
from vim_mm.registry import MODELS

ARCH = dict(embed_dims=16, depths=[1, 1, 3, 1], num_heads=[1, 2, 2, 4])
TASKS = ['cls', 'det', 'seg']
SIZES = dict(tiny=(276.6, 288.8, 28.2, 27.6, 12),
             small=(251.8, 272.5, 50.1, 49.0, 24),
             base=(85.1, 152.8, 87.6, 86.9, 12))


def davit(**kwargs) -> MoEDaViT:
    torch.manual_seed(0)
    cfg = dict(type='vim_mm.MoEDaViT', arch=ARCH, num_experts=4, k=2)
    return MODELS.build(dict(cfg, **kwargs))


def layers(trunk: nn.Module) -> List[MoEMlp]:
    return [m for m in trunk.modules() if isinstance(m, MoEMlp)]


def millions(*modules: nn.Module) -> float:
    return sum(p.numel() for m in modules for p in m.parameters()) / 1e6


@pytest.mark.parametrize('size', SIZES)
def test_parameters_are_those_of_the_paper(size: str) -> None:
    with torch.device('meta'):
        trunk = MoEDaViT(size, TASKS)
        twin = MoEDaViT(size, moe=None)
    experts, total, active, dense, num = SIZES[size]
    found = layers(trunk)
    assert len(found) == num and not layers(twin)
    assert all(m.k == 4 and m.experts.hidden == m.dims for m in found)
    all_experts = millions(*(m.experts for m in found))
    assert all_experts == pytest.approx(experts, abs=.05)
    assert millions(trunk) == pytest.approx(total, abs=.05)
    assert millions(twin) == pytest.approx(dense, abs=.05)
    idle = millions(*(r for m in found for r in list(m.routers.values())[1:]))
    run = all_experts * 4 / len(found[0].experts)
    assert millions(trunk) - idle - all_experts + run == pytest.approx(
        active, abs=.05)


def test_every_two_layers() -> None:
    trunk = davit(moe='every_two')
    names = {n.rpartition('.ffn')[0] for n, m in trunk.named_modules()
             if isinstance(m, MoEMlp)}
    layers = {n.rpartition('.')[0] for n in names}
    assert layers == {
        'stages.0.blocks.0', 'stages.2.blocks.0', 'stages.2.blocks.2'
    }
    assert len(names) == 2 * len(layers)


def test_stochastic_depth_of_both_branches() -> None:
    trunk = davit(drop_path_rate=.3)
    last = trunk.stages[3].blocks[0]
    drops = [last.spatial_block.attn.drop, last.channel_block.attn.drop]
    drops += [half.ffn.dropout_layer
              for half in (last.spatial_block, last.channel_block)]
    assert [d.drop_prob for d in drops] == pytest.approx([.3] * 4)


@pytest.mark.parametrize('moe', ['all', 'every_two', None])
def test_a_file_of_mmpretrain_loads(tmp_path: Path, moe: str) -> None:
    """All but its last norm, which is none of ours by default."""
    from mmpretrain.models.backbones import DaViT
    stock = DaViT(ARCH, out_indices=(3, ))
    fill(stock, .1)
    path = tmp_path / 'davit.pth'
    torch.save(dict(state_dict={
        f'backbone.{k}': v for k, v in stock.state_dict().items()}), path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    cfg = dict(type='vim_mm.MoEDaViT', arch=ARCH, moe=moe, num_experts=4, k=2,
               init_cfg=init_cfg)
    trunk = build_trunk(cfg)
    own = dict(trunk.named_parameters())
    for key, value in stock.named_parameters():
        assert key not in own or torch.equal(own[key], value)
    # a norm for each map: those that the file has none for are new
    normed = build_trunk(dict(cfg, norm_cfg=dict(type='LN')))
    assert torch.equal(normed.norm3.weight, stock.norm3.weight)
    assert torch.equal(normed.norm0.weight, torch.ones(16))


def test_layers_run_again_in_the_backward_pass() -> None:
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    grads = []
    for with_cp in (False, True):
        trunk = davit(with_cp=with_cp, drop_path_rate=.5)
        torch.manual_seed(1)
        loss = sum(y.square().mean() for y in trunk(x))
        leaves = [x, *trunk.parameters()]
        grads.append(torch.autograd.grad(loss, leaves))
    assert sum(isinstance(m.__dict__.get('forward'), Recompute)
               for m in trunk.modules()) == 6
    assert all(map(torch.equal, *grads))


def test_init_weights_draws_dense_layers() -> None:
    trunk = davit(arch=dict(ARCH, embed_dims=64))
    trunk.init_weights()
    layer = layers(trunk)[0]
    for weight in (layer.experts.groups[0].w1, layer.routers['all'].net[0]
                   .weight, trunk.stages[0].blocks[0].spatial_block.attn.w_msa
                   .qkv.weight):
        assert .018 < weight.std() < .021
    first, second = layer.experts.groups[0].w1[:2]
    assert not torch.equal(first, second)
    assert not layer.experts.groups[0].b2.any()


def test_an_ordinary_backbone_of_every_scope() -> None:
    with torch.no_grad():
        maps = ROOT.build(
            dict(type='vim_mm.MoEDaViT', arch=ARCH, num_experts=4, k=2))(
                torch.randn(1, 3, 40, 72))
    assert [tuple(y.shape[1:]) for y in maps] == [
        (16, 10, 18), (32, 5, 9), (64, 3, 5), (128, 2, 3)
    ]


@pytest.mark.parametrize('kwargs, words', [
    (dict(num_experts=None), 'needs `num_experts`, or `moe=None`'),
    (dict(moe='some'), "'all', 'every_two' or"),
    (dict(arch=dict(ARCH, depths=[0] * 4)), "'all', which no layer"),
    (dict(k=5), '`k` is 5, but there are 4'),
    (dict(k=3), '64 hidden units of .* cannot be cut into 3'),
    (dict(tasks=TASKS, task='depth'), "no task 'depth'.*'seg'"),
])
def test_mistakes(kwargs: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        davit(**kwargs)
