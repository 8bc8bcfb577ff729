# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Slots found in real trunks, and sentences where there are none."""

import pytest
import torch
from torch import nn

from _tiny import SIZE, TRUNKS, build_backbone, vit
from vim_mm.models.backbones import SlotSpec, find_slots
from vim_mm.registry import MODELS


def build(cfg: dict) -> nn.Module:
    trunk = MODELS.build(cfg)
    trunk.eval()  # of some backbones returns None
    return trunk


@pytest.mark.parametrize(('cfg', 'num_extra'), [
    (vit(), 1),
    (vit(with_cls_token=False), 0),
    (dict(vit(), type='mmpretrain.DeiT3', out_type='raw'), 1),
    (dict(vit(), type='mmpretrain.DistilledVisionTransformer',
          out_type='raw'), 2),
])
def test_vit(cfg: dict, num_extra: int) -> None:
    slots = find_slots(build(cfg), r'layers\.\d+\.(attn|ffn)', SIZE)
    assert list(slots) == [
        f'layers.{i}.{branch}' for i in range(3) for branch in ('attn', 'ffn')
    ]
    for name, slot in slots.items():
        assert slot == SlotSpec(name, 32, False, num_extra, 14)


def test_vit_b_has_24_slots() -> None:
    with torch.device('meta'):
        trunk = MODELS.build(
            dict(type='mmpretrain.VisionTransformer', arch='b'))
        slots = find_slots(trunk)
    assert len(slots) == 24
    assert {(s.dims, s.stride) for s in slots.values()} == {(768, 16)}


def test_swin_widths_and_strides_are_observed() -> None:
    slots = find_slots(build(TRUNKS['swin']), probe_size=64)
    assert len(slots) == 2 * 5
    assert [(s.dims, s.stride, s.num_extra_tokens)
            for s in slots.values() if s.name.endswith('ffn')] == [
                (8, 4, 0), (16, 8, 0), (16, 8, 0), (32, 16, 0), (64, 32, 0)]


@pytest.mark.parametrize(('kind', 'dims'), [
    ('convnext', [8, 8, 16, 16, 16]),
    ('resnet', [8, 8, 16, 16, 32, 32, 64, 64]),
])
def test_cnn_blocks_are_maps(kind: str, dims: list) -> None:
    slots = find_slots(build(TRUNKS[kind]), probe_size=64)
    assert [s.dims for s in slots.values()] == dims
    assert all(s.is_map for s in slots.values())


def test_timm_blocks_not_their_stages() -> None:
    slots = find_slots(build(TRUNKS['timm']), probe_size=64)
    assert len(slots) == 16
    assert list(slots)[:2] == [
        'timm_model.blocks.0.0', 'timm_model.blocks.1.0'
    ]


def test_the_trunk_is_left_as_it_was() -> None:
    trunk = build(TRUNKS['resnet'])
    trunk.train()
    trunk.layer1.eval()
    modes = {n: m.training for n, m in trunk.named_modules()}
    state = {k: v.clone() for k, v in trunk.state_dict().items()}
    find_slots(trunk, probe_size=64)
    assert modes == {n: m.training for n, m in trunk.named_modules()}
    assert all(torch.equal(v, state[k])
               for k, v in trunk.state_dict().items())
    assert not any(m._forward_hooks for m in trunk.modules())


def test_nested_matches_keep_the_inner_one() -> None:
    slots = find_slots(build(vit()), r'layers\.\d+(\.attn)?', SIZE)
    assert list(slots) == [f'layers.{i}.attn' for i in range(3)]


class Half(nn.Module):

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., :2]


class Odd(nn.Module):
    """Has a submodule that is never called, and one that changes width."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.narrow = Half()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(self.used(x).flatten(2).transpose(1, 2))


def test_what_is_never_called_is_no_slot() -> None:
    assert list(find_slots(Odd(), 'used|idle', 8)) == ['used']


@pytest.mark.parametrize(('pattern', 'sentence'), [
    (None, 'No default slots are known for Odd'),
    ('layers', "'layers' matches no submodule of Odd"),
    ('narrow', "Submodule 'narrow' cannot be a slot"),
])
def test_mistakes_are_sentences(pattern: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        find_slots(Odd(), pattern, 8)


def test_a_probe_that_is_no_whole_stride() -> None:
    with pytest.raises(ValueError, match='set `probe_size`'):
        find_slots(build(vit(with_cls_token=False)), probe_size=64)


def test_grid_of_a_picture() -> None:
    slot = SlotSpec('s', 8, False, num_extra_tokens=2, stride=14)
    assert slot.grid((28, 56), 2 * 4 + 2) == (2, 4)
    assert slot.grid((30, 56), 3 * 4 + 2) == (3, 4)
    assert slot.grid((41, 56), 2 * 4 + 2) == (2, 4)  # rounded down
    with pytest.raises(ValueError, match="'s' carries 9 tokens"):
        slot.grid((28, 56), 9)


def test_slots_behind_the_last_output_take_no_new_adapter() -> None:
    backbone = build_backbone(vit(out_indices=[1]), new_module='new')
    read = [name for name, slot in backbone.slots.items() if slot.is_read]
    assert read == [f'layers.{i}.{b}' for i in (0, 1) for b in ('attn', 'ffn')]
    assert backbone.bank.slots_of('new') == read
    backbone(torch.randn(1, 3, SIZE, SIZE))[-1].square().sum().backward()
    ups = [
        p for n, p in backbone.bank.named_parameters() if n.endswith('up.bias')
    ]
    assert all(p.grad.abs().sum() > 0 for p in ups)


def test_a_single_window_is_not_the_picture() -> None:
    """At 56 px the last stage of the tiny Swin is one window of its own."""
    swin = dict(TRUNKS['swin'])
    backbone = build_backbone(
        swin, new_module='n', adapter=dict(type='LoRA', rank=2))
    assert {spec.stride for spec in backbone.slots.values()} == {0}
    bare = build(swin)
    for size in (SIZE, SIZE + 16):
        shapes = [out.shape for out in bare(torch.zeros(1, 3, size, size))]
        outs = backbone(torch.zeros(1, 3, size, size))
        assert [out.shape for out in outs] == shapes


def test_a_probe_too_small_for_the_last_stage() -> None:
    swin = dict(TRUNKS['swin'])
    with pytest.raises(ValueError, match='are no multiples of the first'):
        find_slots(build(swin), probe_size=56)
