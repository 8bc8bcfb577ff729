# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from _loading import lines
from _tiny import build_backbone, fill
from vim_mm.zoo import (Zoo, ZooError, export, head_state, save_module,
                        trunk_fingerprint)
from vim_mm.zoo.parts import AND, part_of


def test_save_module_fills_the_card(fake_backbone, tmp_path):
    card = save_module(
        fake_backbone,
        'fresh',
        str(tmp_path),
        head=dict(w=torch.ones(2)),
        task='seg',
        dataset='tiles',
        trunk=dict(weights='vit.safetensors', type='a lie'))
    slots = list(fake_backbone.slots)
    assert (card.name, card.kind, card.task) == ('fresh', 'ConvPass', 'seg')
    assert card.slots == slots and card.dims == {slot: 6 for slot in slots}
    assert card.trunk == dict(
        weights='vit.safetensors',
        type='TinyTrunk',
        fingerprint=trunk_fingerprint(fake_backbone.trunk, slots))
    zoo = Zoo(tmp_path)
    loaded, tensors = zoo.load('fresh')
    assert loaded == card
    exported = fake_backbone.bank.export('fresh')
    assert all(torch.equal(tensors[k], exported[k]) for k in exported)
    assert torch.equal(zoo.load_head('fresh')['w'], torch.ones(2))
    zoo.check_trunk(card, fake_backbone.trunk)


@pytest.mark.parametrize('key', ['backbone.trunk_fingerprint',
                                 'backbone.bank.members.n.x', 'neck.fusion.a'])
def test_a_whole_model_is_no_head(fake_backbone, tmp_path, key):
    head = {'head.fc.weight': torch.ones(2), key: torch.ones(2)}
    with pytest.raises(ZooError, match=f'1 tensors that .* {key!r}; give `he'):
        save_module(fake_backbone, 'fresh', tmp_path / 'zoo', head=head)
    assert not (tmp_path / 'zoo').exists()


def test_a_fresh_module_is_told(tmp_path, monkeypatch):
    said = lines(monkeypatch, export)
    backbone = build_backbone(new_module='n')
    save_module(backbone, 'n', tmp_path)
    assert len(said) == 1 and "'n' adds nothing to its trunk" in said[0]
    fill(backbone.bank)
    save_module(backbone, 'n', tmp_path, overwrite=True)
    assert len(said) == 1


def test_save_module_under_another_name(fake_backbone, tmp_path):
    zoo = Zoo(tmp_path)
    card = save_module(fake_backbone, 'fresh', zoo, save_as='v2')
    assert card.trunk['weights'] == 'tiny.pth'
    assert zoo.names() == ['v2']
    with pytest.raises(ZooError, match="already has a module 'v2'"):
        card = save_module(fake_backbone, 'fresh', zoo, save_as='v2')
    assert card.trunk['weights'] == 'tiny.pth'
    save_module(fake_backbone, 'fresh', zoo, save_as='v2', overwrite=True)


def test_licences_of_all_parts_stay(fake_backbone, tmp_path):
    """What holds for a share holds for the whole."""
    share = dict(name='solar', task='cls', dataset='ELPV', sha256='a' * 64)
    fake_backbone.made_of = dict(
        fresh=[
            dict(share, licence='CC BY-NC-SA 4.0 AND MIT'),
            dict(share, name='trees', dataset='crowns', licence='MIT'),
            dict(share, name='old', dataset=None, licence=None),
            dict(name='fresh')  # learned in this run
        ],
        pure=[])
    fields = dict(task='seg', licence='CC0-1.0')
    card = save_module(fake_backbone, 'fresh', tmp_path, **fields)
    assert card.licence == 'CC0-1.0 AND CC BY-NC-SA 4.0 AND MIT AND not stated'
    assert card.dataset == 'ELPV + crowns' and card.task == 'seg'
    assert [part['name'] for part in card.parts] == [
        'solar', 'trees', 'old', 'fresh']
    assert card.parts[-1]['licence'] == 'CC0-1.0'
    # of one that is made of it, too
    fake_backbone.made_of['next'] = part_of(card)
    second = save_module(fake_backbone, 'next', tmp_path, dataset='roads')
    assert set(second.licence.split(AND)) == set(card.licence.split(AND))
    assert second.dataset == 'roads' and len(second.parts) == 5
    pure = save_module(fake_backbone, 'pure', tmp_path, licence='MIT')
    assert pure.licence == 'MIT' and pure.parts == []
    assert Zoo(tmp_path).card('next') == second


@pytest.mark.parametrize('field', ['colour', 'sha256', 'dims'])
def test_save_module_takes_known_fields_only(fake_backbone, tmp_path, field):
    with pytest.raises(ZooError, match=f'cannot be given {field}; it takes'):
        save_module(fake_backbone, 'fresh', tmp_path / 'z', **{field: 'red'})
    assert not (tmp_path / 'z').exists()


class TinyModel(nn.Module):

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.backbone_norm = nn.BatchNorm1d(2)
        self.head = nn.Linear(2, 2)
        self.head.weight.data = self.head.weight.data.t()


def test_head_state_is_all_but_the_backbone():
    model = TinyModel()
    state = head_state(model)
    whole = model.state_dict()
    assert set(whole) - set(state) == {'backbone.weight', 'backbone.bias'}
    assert all(torch.equal(state[k], whole[k]) for k in state)
    assert state['head.weight'].is_contiguous()
    before = state['head.bias'].clone()
    with torch.no_grad():
        model.head.bias += 1
    assert torch.equal(state['head.bias'], before)


def vit_backbone(**cfg):
    init_default_scope('mmpretrain')
    arch = dict(
        embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
    trunk = dict(
        type='mmpretrain.VisionTransformer',
        arch=arch,
        img_size=32,
        patch_size=16,
        out_type='featmap')
    return MODELS.build(
        dict(
            type='vim_mm.ViMBackbone',
            trunk=trunk,
            probe_size=32,
            adapter=dict(type='vim_mm.ConvPass', hidden_dims=2),
            **cfg))


def test_module_of_a_real_backbone_returns_bit_exact(tmp_path):
    torch.manual_seed(0)
    trained = vit_backbone(new_module='pots').eval()
    for value in trained.bank.parameters():
        nn.init.normal_(value)
    save_module(trained, 'pots', tmp_path, task='cls')
    image = torch.rand(2, 3, 32, 32)

    # the same trunk, seen through the same seed
    torch.manual_seed(0)
    again = vit_backbone(modules=['pots'], zoo=str(tmp_path)).eval()
    with torch.no_grad():
        assert torch.equal(again(image)[0], trained(image)[0])
        with again.only():
            assert not torch.equal(again(image)[0], trained(image)[0])

    torch.manual_seed(1)
    with pytest.raises(ZooError, match='the weights in its slots differ'):
        vit_backbone(modules=['pots'], zoo=str(tmp_path))
