# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Experts that start from dense weights, by every way that files take."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from mmengine.runner import load_checkpoint
from torch import nn

from _moe import DENSE, layers_of, make_uniform, side_of
from _tiny import fill, same, snapshot, vit
from vim_mm.models.backbones import build_trunk
from vim_mm.models.layouts import as_levels
from vim_mm.models.moe import start_from_dense, to_moe, upcycling
from vim_mm.registry import MODELS

FULL = dict(num_experts=4, k=4, slices=2)


@pytest.fixture(scope='module')
def dense() -> nn.Module:
    trunk = MODELS.build(vit())
    fill(trunk, .1)
    trunk.eval()
    return trunk


@pytest.fixture(scope='module')
def file(dense: nn.Module, tmp_path_factory) -> str:
    """A checkpoint of a whole model, as a runner writes it."""
    path = tmp_path_factory.mktemp('dense') / 'model.pth'
    state = {f'backbone.{k}': v for k, v in dense.state_dict().items()}
    torch.save(dict(state_dict=state, meta={}), path)
    return str(path)


def moe(trunk: dict = vit(), **kwargs) -> dict:
    return dict(dict(type='vim_mm.to_moe', trunk=trunk, **FULL), **kwargs)


def check(trunk: nn.Module, dense: nn.Module, side: int = 56) -> None:
    trunk = deepcopy(trunk)
    trunk.eval()
    make_uniform(trunk)
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        for ours, theirs in zip(as_levels(trunk(x)), as_levels(dense(x))):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('way', ['frozen', 'init_cfg', 'load_from', 'explicit',
                                 'state', 'in place'])
def test_ways_to_load(way: str, dense: nn.Module, file: str) -> None:
    source = dict(type='Pretrained', checkpoint=file)
    if way == 'frozen':
        trunk = build_trunk(moe(vit(init_cfg=source)))
    elif way == 'init_cfg':
        trunk = MODELS.build(moe(vit(init_cfg=dict(
            source, prefix='backbone.'))))
        trunk.init_weights()
    elif way == 'load_from':
        model = MODELS.build(dict(
            type='mmpretrain.ImageClassifier', backbone=moe()))
        load_checkpoint(model, file, map_location='cpu')
        trunk = model.backbone
    elif way == 'in place':
        trunk = MODELS.build(moe(deepcopy(dense)))
    else:
        trunk = MODELS.build(moe())
        start_from_dense(trunk,
                         dense if way == 'explicit' else dense.state_dict())
    check(trunk, dense)
    routers = layers_of(trunk)[0].routers['all'].state_dict()
    assert routers['net.0.weight'].std() > .01


@pytest.mark.parametrize('name', ['swin', 'convnext', 'davit', 'mmdet_swin',
                                  'timm_vit', 'timm_swin', 'timm_dinov3'])
def test_files_of_other_trunks(name: str, tmp_path: Path) -> None:
    dense = MODELS.build(dict(DENSE[name]))
    fill(dense, .1)
    dense.eval()
    trunk = MODELS.build(moe(dict(DENSE[name])))
    start_from_dense(trunk, dense)
    check(trunk, dense, side_of(name))


def test_experts_hold_slices_in_turn(dense: nn.Module) -> None:
    """Five experts, two slices: those of the first one run three times."""
    trunk = MODELS.build(moe(num_experts=5, k=5))
    start_from_dense(trunk, dense)
    group = layers_of(trunk)[1].experts.groups[0]
    own = dense.layers[1].ffn.layers
    for expert in range(5):
        rows = slice(0, 32) if expert % 2 == 0 else slice(32, 64)
        scale = 5 / 3 if expert % 2 == 0 else 5 / 2
        assert torch.equal(group.w1[expert], own[0][0].weight[rows])
        assert torch.equal(group.b1[expert], own[0][0].bias[rows])
        torch.testing.assert_close(group.w2[expert],
                                   own[1].weight[:, rows] * scale)
        assert torch.equal(group.b2[expert], own[1].bias)
    check(trunk, dense)


def test_k_distinct_slices_keep_the_magnitude(dense: nn.Module) -> None:
    """With gates of E / k, k of E experts give what the dense MLP gave."""
    trunk = MODELS.build(moe(num_experts=4, k=2))
    start_from_dense(trunk, dense)
    make_uniform(trunk)
    x = torch.randn(3, 32)
    with torch.no_grad():
        for layer, block in zip(layers_of(trunk), dense.layers):
            # near ties, in which the first two experts win
            layer.routers['all'].net[2].bias.copy_(
                torch.tensor([2e-6, 1e-6, 0, 0]))
            torch.testing.assert_close(
                layer(x), block.ffn.layers(x), rtol=1e-4, atol=1e-5)


def test_groups_of_experts(dense: nn.Module) -> None:
    trunk = MODELS.build(moe())
    for layer in layers_of(trunk):
        layer.experts.split([0])
    start_from_dense(trunk, dense)
    check(trunk, dense)


def test_noise(dense: nn.Module) -> None:
    trunks = [to_moe(deepcopy(dense), **FULL, perturb=p, seed=s)
              for p, s in [(0, 0), (.1, 1), (.1, 1), (.1, 2)]]
    loaded = MODELS.build(moe(perturb=.1, seed=1))
    start_from_dense(loaded, dense)
    plain, first, again, other = [
        [(g.w1, g.w2, g.b1, g.b2) for m in layers_of(t)
         for g in m.experts.groups] for t in trunks]
    for a, b, c, d, e in zip(plain, first, again, other, (
            m.experts.groups[0] for m in layers_of(loaded))):
        for i in (0, 1):
            noise = b[i] - a[i]
            assert (noise.std() / a[i].std()).item() == pytest.approx(
                .1, rel=.1)
            assert torch.equal(b[i], c[i]) and not torch.equal(b[i], d[i])
        assert torch.equal(e.w1, b[0]) and torch.equal(e.w2, b[1])
        assert torch.equal(a[2], b[2]) and torch.equal(a[3], b[3])
    # no layer has the noise of another
    assert not torch.equal(first[0][0] - plain[0][0],
                           first[1][0] - plain[1][0])


def test_one_line_in_the_log(file: str, monkeypatch) -> None:
    lines = []
    monkeypatch.setattr(upcycling, 'print_log',
                        lambda line, **_: lines.append(line))
    build_trunk(moe(vit(init_cfg=dict(type='Pretrained', checkpoint=file)),
                    perturb=.01))
    assert len(lines) == 1
    assert 'experts of 3 layers start from' in lines[0]
    assert 'noise of 0.01' in lines[0]


def test_own_files_are_read_as_they_are(tmp_path: Path) -> None:
    trunk = MODELS.build(moe(tasks=['a', 'b']))
    fill(trunk)
    path = tmp_path / 'moe.pth'
    torch.save(trunk.state_dict(), path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    again = build_trunk(moe(vit(init_cfg=init_cfg), tasks=['a', 'b']))
    assert same(snapshot(again), snapshot(trunk))
    copied = deepcopy(again)
    copied.load_state_dict(trunk.state_dict())
    assert same(snapshot(copied), snapshot(again))


@pytest.mark.parametrize('strict', [False, True])
def test_pruned_files_in_an_unpruned_trunk(strict: bool) -> None:
    trunk = MODELS.build(moe(k=2, tasks=['a']))
    pruned = deepcopy(trunk)
    for layer in layers_of(pruned):
        layer.keep([0, 3])
    with pytest.raises(ValueError, match=r'`layers\.0\.ffn.*load_moe'):
        trunk.load_state_dict(pruned.state_dict(), strict=strict)


def test_files_of_another_trunk(dense: nn.Module, tmp_path: Path) -> None:
    trunk = MODELS.build(moe())
    state = dict(dense.state_dict())
    del state['layers.1.attn.qkv.weight']
    with pytest.raises(ValueError, match='lack 1 tensors.*layers.1.attn'):
        start_from_dense(trunk, state)
    state = dict(dense.state_dict())
    del state['layers.1.ffn.layers.1.weight']
    with pytest.raises(ValueError, match=r"lacks 'layers\.1\.ffn\.layers\.1"):
        start_from_dense(trunk, state)
    state = dict(dense.state_dict())
    state['layers.1.ffn.layers.0.0.weight'] = torch.zeros(96, 32)
    with pytest.raises(ValueError, match=r"'layers\.1\.ffn\.layers\.0\.0'.*32 "
                       '-> 96 -> 32'):
        start_from_dense(trunk, state)


def test_a_recipe_in_the_file_is_checked(dense: nn.Module,
                                         tmp_path: Path) -> None:
    """Activations are the experts' now, and still no shape betrays them."""
    import json

    from safetensors.torch import save_file
    path = tmp_path / 'dense.safetensors'
    save_file(dense.state_dict(), path, dict(backbone=json.dumps(vit())))
    source = dict(init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    build_trunk(moe(vit(**source)))
    quick = dict(act_cfg=dict(type='mmpretrain.QuickGELU'))
    with pytest.raises(ValueError, match=r"trained with GELU.*QuickGELU\(\)"):
        build_trunk(moe(vit(layer_cfgs=quick, **source)))


def test_a_trunk_that_loads_while_it_is_built() -> None:
    """As timm's ``pretrained=True`` does: there is no file to come."""
    from mmpretrain.models.backbones import VisionTransformer
    from mmpretrain.registry import MODELS as THEIRS

    @THEIRS.register_module(name='Ready', force=True)
    class Ready(VisionTransformer):

        def __init__(self, pretrained: bool, **kwargs) -> None:
            super().__init__(**kwargs)
            fill(self, .1)

    try:
        cfg = dict({k: v for k, v in vit().items() if k != 'type'},
                   type='mmpretrain.Ready')
        dense = MODELS.build(dict(cfg, pretrained=True))
        dense.eval()
        check(MODELS.build(moe(dict(cfg, pretrained=True))), dense)
        drawn = MODELS.build(moe(dict(cfg, pretrained=False)))
        assert not layers_of(drawn)[0].experts.groups[0].b1.any()
    finally:
        THEIRS._module_dict.pop('Ready')
