# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vim_mm.zoo import ModuleCard, Zoo, trunk_fingerprint

SLOTS = ['layers.0.attn', 'layers.0.ffn', 'layers.1.attn', 'layers.1.ffn']
DIMS = 6


class Block(nn.Module):

    def __init__(self):
        super().__init__()
        self.attn = nn.Linear(DIMS, DIMS)
        self.ffn = nn.Sequential(nn.Linear(DIMS, DIMS), nn.BatchNorm1d(DIMS))


class TinyTrunk(nn.Module):
    """Two blocks; the number of positions stands for the image size."""

    def __init__(self, seed=0, num_positions=4, final_norm=True):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList([Block(), Block()])
        self.pos_embed = nn.Parameter(torch.rand(1, num_positions, DIMS))
        if final_norm:
            self.norm = nn.LayerNorm(DIMS)


@pytest.fixture
def make_trunk():
    return TinyTrunk


@pytest.fixture
def make_tensors():

    def make(seed=0, slots=SLOTS):
        generator = torch.Generator().manual_seed(seed)
        shapes = {
            'down.weight': (2, DIMS),
            'down.bias': (2, ),
            'conv.weight': (2, 2, 3, 3),
            'up.weight': (DIMS, 2)
        }
        return {
            f'{slot}.{param}': torch.randn(shape, generator=generator)
            for slot in slots
            for param, shape in shapes.items()
        }

    return make


@pytest.fixture
def make_card():

    def make(name='m', **fields):
        values = dict(
            name=name,
            kind='ConvPass',
            adapter=dict(type='ConvPass', hidden_dims=2),
            slots=SLOTS,
            dims={slot: DIMS
                  for slot in SLOTS},
            trunk=dict(
                type='TinyTrunk',
                fingerprint=trunk_fingerprint(TinyTrunk(), SLOTS),
                description='made by hand'),
            task='det',
            dataset='blobs',
            num_train=12,
            metrics=[dict(name='AP', value=0.25, n=3)],
            licence='Apache-2.0',
            training=dict(config='tiny.py', seconds=1.5))
        return ModuleCard(**{**values, **fields})

    return make


@pytest.fixture
def zoo(tmp_path, make_card, make_tensors):
    """A zoo with the module 'm'."""
    zoo = Zoo(tmp_path / 'zoo')
    zoo.save(make_card(), make_tensors())
    return zoo


@pytest.fixture
def forge():
    """Exchange a module's file and let its card vouch for the new one."""
    import hashlib
    import json

    def exchange(zoo, data, name='m', **changes):
        folder = zoo.root / name
        (folder / 'module.safetensors').write_bytes(data)
        card = json.loads((folder / 'card.json').read_text())
        card.update(sha256=hashlib.sha256(data).hexdigest(), **changes)
        (folder / 'card.json').write_text(json.dumps(card))

    return exchange


@pytest.fixture
def fake_backbone(make_tensors):
    """What save_module asks of a backbone, and no more."""
    bank = SimpleNamespace(
        adapter_cfg=lambda name: dict(type='vim_mm.ConvPass', hidden_dims=2),
        slots_of=lambda name: list(SLOTS),
        dims_of=lambda name: dict.fromkeys(SLOTS, DIMS),
        export=lambda name: make_tensors(seed=5))
    return SimpleNamespace(
        selection={},
        made_of={},
        trunk=TinyTrunk(),
        trunk_weights='weights/tiny.pth',
        slots=dict.fromkeys(SLOTS),
        bank=bank)
