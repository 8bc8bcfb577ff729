# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import copy
import hashlib

import pytest
import torch
from mmengine.registry import MODEL_WRAPPERS
from torch import nn

from vim_mm.zoo import ZooError, fingerprint, same_trunk, trunk_fingerprint

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


# ------------------------------------------------------- what is kept of it


@pytest.fixture
def hashed(monkeypatch):
    """Grows by an entry whenever weights are hashed."""
    calls, digest = [], fingerprint._digest

    def counted(states):
        calls.append(list(states))
        return digest(states)

    monkeypatch.setattr(fingerprint, '_digest', counted)
    return calls


def test_weights_are_hashed_once_for_the_same_slots(make_trunk, hashed):
    trunk, other = make_trunk(), make_trunk()
    digest = trunk_fingerprint(trunk, SLOTS)
    trunk.requires_grad_(False).train()
    for same in (trunk, PlainWrapper(trunk)):
        assert trunk_fingerprint(same, SLOTS[::-1] + SLOTS) == digest
    assert len(hashed) == 1
    assert trunk_fingerprint(trunk, SLOTS[:1]) != digest
    assert trunk_fingerprint(trunk, SLOTS) == digest
    assert len(hashed) == 2
    assert same_trunk(trunk, digest, SLOTS) and len(hashed) == 2
    assert same_trunk(trunk, other, SLOTS) and len(hashed) == 3
    assert not same_trunk(trunk, make_trunk(seed=1), SLOTS)


def in_place(trunk):
    with torch.no_grad():
        trunk.layers[1].attn.weight[0, 0] += 1e-3


def through_data(trunk):
    trunk.layers[1].attn.weight.data.mul_(1.01)


def other_data(trunk):
    weight = trunk.layers[1].attn.weight
    weight.data = weight.data.flip(0)


def rounded(trunk):
    """Its tensors may lie where they lay before, and count no change."""
    trunk.bfloat16().float()


def loaded(trunk):
    trunk.load_state_dict({k: v + 1 for k, v in trunk.state_dict().items()})


def assigned(trunk):
    state = {k: v + 1 for k, v in trunk.state_dict().items()}
    trunk.load_state_dict(state, assign=True)


def parameter(trunk):
    trunk.layers[1].attn.weight = nn.Parameter(
        trunk.layers[1].attn.weight.detach() + 1)


def submodule(trunk):
    trunk.layers[0], trunk.layers[1] = trunk.layers[1], trunk.layers[0]


def buffer(trunk):
    trunk.layers[1].ffn[1].running_mean.add_(1)


def by_optimizer(trunk):
    optimizer = torch.optim.SGD(trunk.parameters(), lr=1.)
    sum(p.sum() for p in trunk.parameters()).backward()
    optimizer.step()


def transposed(trunk):
    weight = trunk.layers[1].attn.weight
    weight.data = weight.data.t()


@pytest.mark.parametrize('change', [
    in_place, through_data, other_data, rounded, loaded, assigned, parameter,
    submodule, buffer, by_optimizer, transposed
])
def test_a_changed_trunk_is_hashed_anew(make_trunk, change):
    trunk = make_trunk()
    before = trunk_fingerprint(trunk, SLOTS)
    change(trunk)
    after = trunk_fingerprint(trunk, SLOTS)
    assert after != before
    # a copy of its own was never hashed
    assert after == trunk_fingerprint(copy.deepcopy(trunk), SLOTS)


@pytest.mark.parametrize('move', [
    lambda trunk: trunk.double().float(), copy.deepcopy,
    lambda trunk: trunk.load_state_dict(trunk.state_dict()) and trunk
])
def test_what_changes_no_value_changes_no_fingerprint(make_trunk, move):
    trunk = make_trunk()
    before = trunk_fingerprint(trunk, SLOTS)
    assert trunk_fingerprint(move(trunk), SLOTS) == before


def test_a_copy_changes_by_itself(make_trunk):
    trunk = make_trunk()
    before = trunk_fingerprint(trunk, SLOTS)
    twin = copy.deepcopy(trunk)
    in_place(twin)
    assert trunk_fingerprint(twin, SLOTS) != before
    assert trunk_fingerprint(trunk, SLOTS) == before


def test_tensors_of_inference_mode(make_trunk):
    with torch.inference_mode():
        trunk = make_trunk()
        before = trunk_fingerprint(trunk, SLOTS)
        trunk.layers[1].attn.weight.mul_(1.01)
        assert trunk_fingerprint(trunk, SLOTS) != before
        trunk.layers[1].attn.weight.mul_(0.)
    assert before == trunk_fingerprint(make_trunk(), SLOTS)
    assert not same_trunk(trunk, before, SLOTS)


def test_nothing_is_kept_of_a_trunk_that_is_gone(make_trunk):
    known = len(fingerprint._KNOWN)
    trunk = make_trunk()
    trunk_fingerprint(trunk, SLOTS)
    assert len(fingerprint._KNOWN) == known + 1
    del trunk
    assert len(fingerprint._KNOWN) <= known
