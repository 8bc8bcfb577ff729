# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import hashlib

import pytest
import torch
from mmengine.registry import MODEL_WRAPPERS
from torch import nn

from vim_mm.zoo import ZooError, trunk_fingerprint

SLOTS = ['layers.0.attn', 'layers.0.ffn', 'layers.1.attn', 'layers.1.ffn']


@MODEL_WRAPPERS.register_module()
class PlainWrapper(nn.Module):

    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.fixture
def digest(make_trunk):
    return trunk_fingerprint(make_trunk(), SLOTS)


def test_against_a_plain_reference(make_trunk):
    trunk = make_trunk()
    text = hashlib.sha256()
    for key in ('bias', 'weight'):
        if key == 'bias':
            text.update(b'layers.0.attn\n')
        value = getattr(trunk.layers[0].attn, key)
        text.update(f'layers.0.attn.{key} {list(value.shape)}\n'.encode())
        text.update(value.detach().numpy().tobytes())
    assert trunk_fingerprint(trunk, ['layers.0.attn']) == text.hexdigest()


@pytest.mark.parametrize('other', [
    dict(num_positions=9),
    dict(final_norm=False),
])
def test_image_size_and_final_norm_do_not_matter(make_trunk, digest, other):
    assert trunk_fingerprint(make_trunk(**other), SLOTS) == digest


def test_hooks_order_wrapper_and_memory_do_not_matter(make_trunk, digest):
    trunk = make_trunk()
    trunk.layers[0].attn.register_forward_hook(lambda *_: None)
    trunk.layers[1].ffn.requires_grad_(False)
    weight = trunk.layers[0].attn.weight
    weight.data = weight.data.t().contiguous().t()
    assert not weight.is_contiguous()
    assert trunk_fingerprint(trunk.double(), SLOTS[::-1] + SLOTS) == digest
    assert trunk_fingerprint(PlainWrapper(trunk), SLOTS) == digest
    inside = nn.ModuleDict(dict(backbone=nn.ModuleDict(dict(trunk=trunk))))
    assert trunk_fingerprint(inside['backbone']['trunk'], SLOTS) == digest


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason='needs a CUDA device')
def test_device_does_not_matter(make_trunk, digest):
    assert trunk_fingerprint(make_trunk().cuda(), SLOTS) == digest


def test_weights_and_buffers_matter(make_trunk, digest):
    seen = {digest, trunk_fingerprint(make_trunk(seed=1), SLOTS)}
    trunk = make_trunk()
    with torch.no_grad():
        trunk.layers[1].attn.weight[0, 0] += 1e-6
    seen.add(trunk_fingerprint(trunk, SLOTS))
    trunk = make_trunk()
    trunk.layers[1].ffn[1].running_mean[0] = 1.
    seen.add(trunk_fingerprint(trunk, SLOTS))
    seen.add(trunk_fingerprint(make_trunk(), SLOTS[:3]))
    seen.add(trunk_fingerprint(make_trunk().bfloat16(), SLOTS))
    assert len(seen) == 6


def test_swapped_slots_and_reshaped_tensors_matter(make_trunk, digest):
    trunk = make_trunk()
    layers = trunk.layers
    layers[0].attn, layers[1].attn = layers[1].attn, layers[0].attn
    assert trunk_fingerprint(trunk, SLOTS) != digest
    trunk = make_trunk()
    attn = trunk.layers[0].attn
    attn.weight.data = attn.weight.data.reshape(4, 9)
    assert trunk_fingerprint(trunk, SLOTS) != digest


def test_unknown_slot_is_refused(make_trunk):
    with pytest.raises(ZooError, match="TinyTrunk has no submodule 'blocks.0"):
        trunk_fingerprint(make_trunk(), ['layers.0.attn', 'blocks.0.attn'])
    with pytest.raises(ZooError, match='none is given'):
        trunk_fingerprint(make_trunk(), [])
