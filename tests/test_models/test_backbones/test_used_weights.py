# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""LoRA in linear layers whose callers take the weight alone."""

import io
from copy import deepcopy

import pytest
import timm
import torch
from _weights import drawn
from torch import nn

from _tiny import compiles, fill
from vim_mm.apis.sharing import share
from vim_mm.registry import MODELS

SMALL = dict(embed_dim=32, depth=2, num_heads=2)
VIT = dict(embed_dims=32, num_layers=2, num_heads=2)


def timm_trunk(name: str, **kwargs) -> dict:
    return dict(
        dict(type='mmpretrain.TIMMBackbone', model_name=name, img_size=64),
        **kwargs)


#: Trunks, the slots that LoRA takes by default, and how many are not called.
TRUNKS = dict(
    beit=(timm_trunk('beit_base_patch16_224', **SMALL), 4, 2),
    eva02=(timm_trunk('eva02_base_patch14_224', **dict(SMALL,
                                                       img_size=56)), 8, 0),
    dinov3=(timm_trunk('vit_small_patch16_dinov3', **SMALL), 4, 0),
    dinov3_qkvb=(timm_trunk('vit_small_patch16_dinov3_qkvb', **SMALL), 4, 2),
    swin_v2=(timm_trunk(
        'swinv2_tiny_window8_256',
        embed_dim=8,
        depths=(1, 1),
        num_heads=(1, 1),
        window_size=4), 4, 2),
    mm_beit=(dict(
        type='mmpretrain.BEiTViT',
        arch=dict(VIT, feedforward_channels=64),
        img_size=64,
        out_type='featmap'), 4, 2),
    mmseg_beit=(dict(
        type='mmseg.BEiT', img_size=64, out_indices=(0, 1), **VIT), 4, 2),
    mmseg_mae=(dict(type='mmseg.MAE', img_size=64, out_indices=(0, 1),
                    **VIT), 4, 0))


def build(trunk: dict, adapter: str = 'LoRA', **kwargs) -> nn.Module:
    size = trunk.get('img_size', 64)
    backbone = MODELS.build(
        dict(
            type='vim_mm.ViMBackbone',
            trunk=trunk,
            new_module='a',
            adapter=dict(type=adapter, **kwargs),
            probe_size=size))
    drawn(backbone.trunk)
    fill(backbone.bank, 0.1)
    backbone.eval()
    return backbone


def picture(trunk: dict) -> torch.Tensor:
    size = trunk.get('img_size', 64)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, size, size, generator=generator)


def merged(backbone: nn.Module) -> nn.Module:
    """The bare trunk, the changes written into its weights."""
    trunk = deepcopy(backbone.trunk)
    for slot in backbone.slots:
        lora = backbone.bank.adapter('a', slot)
        change = lora.scale * lora.up.weight @ lora.down.weight
        weight = trunk.get_submodule(slot)._parameters['weight']
        weight.data += change.detach()
    return trunk


@pytest.fixture(scope='module', params=TRUNKS)
def case(request) -> tuple:
    trunk, number, uncalled = TRUNKS[request.param]
    return build(trunk, rank=2), picture(trunk), number, uncalled


def equal(first, second, **close) -> None:
    for ours, theirs in zip(first, second):
        torch.testing.assert_close(ours, theirs, **close)


def test_all_layers_are_adapted(case: tuple) -> None:
    backbone, x, number, uncalled = case
    assert len(backbone.slots) == number
    used = [s for s in backbone.slots.values() if not s.is_called]
    assert len(used) == uncalled
    bare = [level.clone() for level in backbone.trunk(x)]
    with backbone.only():
        equal(backbone(x), bare, rtol=0, atol=0)
    adapted = backbone(x)
    assert not torch.allclose(adapted[-1], bare[-1], atol=1e-3)
    backbone.trunk(x)  # no pass runs: nothing is added
    equal(backbone.trunk(x), bare, rtol=0, atol=0)
    equal(adapted, merged(backbone)(x), rtol=1e-4, atol=1e-4)


def test_all_of_it_learns(case: tuple) -> None:
    backbone, x, *_ = case
    sum(level.sum() for level in backbone(x)).backward()
    for name, param in backbone.bank.named_parameters():
        assert param.grad is not None and param.grad.any(), name
    assert all(p.grad is None for p in backbone.trunk.parameters())
    backbone.zero_grad()


def test_copies_run_their_own(case: tuple) -> None:
    backbone, x, *_ = case
    before = [level.detach().clone() for level in backbone(x)]
    twin = deepcopy(backbone)
    equal(twin(x), before, rtol=0, atol=0)
    with torch.no_grad():
        for param in twin.bank.parameters():
            param.mul_(2)
    assert not torch.equal(twin(x)[-1], before[-1])
    equal(backbone(x), before, rtol=0, atol=0)
    file = io.BytesIO()
    torch.save(backbone, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    equal(again(x), before, rtol=0, atol=0)


def test_the_trunk_stays_what_it_is(case: tuple) -> None:
    backbone, x, *_ = case
    plain = type(backbone.trunk).__name__
    for name, part in backbone.trunk.named_modules():
        if isinstance(part, nn.Linear):
            assert isinstance(part._parameters['weight'], nn.Parameter), plain
    before = [level.detach().clone() for level in backbone(x)]
    twin = deepcopy(backbone)
    share(twin, backbone)  # holds each tensor once
    equal(twin(x), before, rtol=0, atol=0)
    ours, theirs = (dict(b.trunk.named_parameters()) for b in (twin, backbone))
    assert ours.keys() == theirs.keys()
    assert all(ours[key] is theirs[key] for key in ours)
    double = deepcopy(backbone).double()
    equal(double(x.double()), before, rtol=1e-3, atol=1e-3, check_dtype=False)


@compiles
@pytest.mark.parametrize('name', ['dinov3_qkvb', 'mm_beit'])
def test_checkpointing_and_compiling(name: str) -> None:
    trunk, *_ = TRUNKS[name]
    backbone, x = build(trunk, rank=2), picture(trunk)
    before = backbone(x)
    sum(level.sum() for level in before).backward()
    grads = [p.grad.clone() for p in backbone.bank.parameters()]
    backbone.zero_grad()
    backbone.grad_checkpointing()
    backbone.train()
    sum(level.sum() for level in backbone(x)).backward()
    again = [p.grad for p in backbone.bank.parameters()]
    equal(again, grads)
    backbone.grad_checkpointing(False)
    backbone.eval()
    backbone.compile(backend='eager', fullgraph=True)
    equal(backbone(x), before)


class Hidden(nn.Module):
    """Attention whose output layer is never called, nor its weight given."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 16, 16)
        self.attn = nn.MultiheadAttention(8, 1, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.attn(x, x, x)[0]


def test_what_nobody_sees_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"1 linear layers \['attn.out_proj"):
        MODELS.build(
            dict(
                type='vim_mm.ViMBackbone',
                trunk=Hidden(),
                new_module='a',
                adapter=dict(type='LoRA', slots=r'attn\.out_proj'),
                probe_size=64))


def test_default_slots_of_convnext() -> None:
    trunk = dict(type='mmpretrain.TIMMBackbone', features_only=True)
    slots = build(dict(trunk, model_name='test_convnext3'), rank=2).slots
    assert len(slots) == 8 and all('mlp.fc' in slot for slot in slots)
    with pytest.raises(ValueError, match='has no linear layers'):
        build(dict(trunk, model_name='convnext_atto'))  # convolutions


#: Models of timm whose attention is made of other layers than `qkv`, how each
#: is made small, and the names of these layers.
SPLIT = dict(
    pvt_v2_b0=(dict(depths=(1, 1, 1, 1)), 'q kv proj fc1 fc2'),
    twins_svt_small=(dict(
        depths=(2, 1, 1, 1),
        embed_dims=(16, 16, 16, 16),
        num_heads=(1, 1, 1, 1)), 'q kv qkv proj'),
    convit_tiny=(dict(
        SMALL, img_size=64, local_up_to_layer=1, features_only=False),
                 'qk v qkv proj'),
    cait_xxs24_224=(dict(SMALL, img_size=64, features_only=False),
                    'q k v qkv proj'),
    edgenext_xx_small=(dict(
        depths=(1, 1, 1, 1), dims=(8, 16, 16, 16), heads=(1, 1, 1, 1)),
                       'qkv proj fc1 fc2'))


@pytest.mark.parametrize('name', SPLIT)
def test_no_part_of_an_attention_is_left_out(name: str) -> None:
    sizes, layers = SPLIT[name]
    trunk = dict(
        dict(
            type='mmpretrain.TIMMBackbone', model_name=name,
            features_only=True), **sizes)
    backbone = build(trunk, rank=2)
    found = {slot.rpartition('.')[2] for slot in backbone.slots}
    assert found == set(layers.split())
    x = picture(trunk)
    equal(backbone(x), merged(backbone)(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('name', [
    'vit_small_patch16_dinov3', 'beit_base_patch16_224',
    'vit_tiny_patch16_224'
])
def test_the_same_without_a_wrapper(name: str) -> None:
    """A ready module of timm has the slots that its wrapper has."""
    trunk = timm.create_model(name, num_classes=0, img_size=64, **SMALL)
    wrapped = build(timm_trunk(name, **SMALL))
    for kind in ('LoRA', 'ConvPass'):
        backbone = MODELS.build(
            dict(
                type='vim_mm.ViMBackbone',
                trunk=trunk,
                new_module='a',
                adapter=dict(type=kind),
                probe_size=64))
        if kind == 'LoRA':
            names = {f'timm_model.{slot}' for slot in backbone.slots}
            assert names == set(wrapped.slots)
        assert len(backbone.slots) == 4
