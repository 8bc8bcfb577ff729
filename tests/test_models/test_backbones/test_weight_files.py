# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Files in any wrapping, and any way to name them in a config."""

import re
import socket
from pathlib import Path
from typing import Dict, NamedTuple

import pytest
import timm
import torch
from _weights import drawn, with_file
from mmdet.models import ResNet, SwinTransformer
from mmengine.model import PretrainedInit
from mmpretrain.models import TIMMBackbone
from torch import Tensor

from _tiny import same, snapshot
from vim_mm.models.backbones import build_trunk
from vim_mm.models.backbones.weights import read_weights
from vim_mm.utils.cli import is_user_error

RESNET = dict(
    type='mmdet.ResNet', depth=18, base_channels=8, stem_channels=8)
VIT = dict(embed_dim=32, depth=2, num_heads=2, img_size=64)
TIMM = dict(
    type='mmpretrain.TIMMBackbone',
    model_name='vit_tiny_patch16_224',
    features_only=True,
    out_indices=(0, 1),
    **VIT)


class Net(NamedTuple):
    """A trunk, and the tensors that belong to it in the file's names."""

    cfg: dict
    state: Dict[str, Tensor]

    def is_loaded(self, **more) -> bool:
        found = {
            key.removeprefix('timm_model.model.'): value
            for key, value in build_trunk(dict(self.cfg, **
                                               more)).state_dict().items()
        }
        return same(found, {key: self.state[key] for key in found})


@pytest.fixture(scope='module', params=['mm', 'timm'])
def net(request) -> Net:
    if request.param == 'mm':
        return Net(RESNET, drawn(RESNET).state_dict())
    model = timm.create_model('vit_tiny_patch16_224', **VIT)
    return Net(TIMM, drawn(model).state_dict())


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list:
    lines: list = []
    for module in ('trunk', 'weights'):
        monkeypatch.setattr(f'vim_mm.models.backbones.{module}.print_log',
                            lambda text, *_, **__: lines.append(text))
    return lines


def front(prefix: str, state: dict) -> dict:
    return {f'{prefix}{key}': value for key, value in state.items()}


@pytest.mark.parametrize('wrapper', [
    'net', 'model_state_dict', 'ema', 'backbone', 'encoder', 'image_encoder',
    'weights', 'params_ema', 'student'
])
def test_a_wrapper_of_any_name(net: Net, tmp_path: Path,
                               wrapper: str) -> None:
    path = tmp_path / 'file.pth'
    slots = dict(state={0: dict(exp_avg=torch.ones(3))}, param_groups=[])
    torch.save(
        {
            wrapper: dict(net.state),
            'optimizer': slots,
            'epoch': 3,
            'centre': dict(mean=1.)
        }, path)
    assert net.is_loaded(**with_file({}, path))


def test_two_of_them_are_the_users_choice(net: Net, tmp_path: Path) -> None:
    """As I-JEPA publishes its encoder and the average of it."""
    path = tmp_path / 'file.pth'
    averaged = {key: value + 1 for key, value in net.state.items()}
    torch.save(
        dict(
            encoder=front('module.', net.state),
            target_encoder=front('module.', averaged),
            predictor=dict(weight=torch.ones(2))), path)
    with pytest.raises(ValueError, match=r"'encoder.module.', 'target_enc.*"
                       'choose one by `init_cfg.prefix`.$'):
        net.is_loaded(**with_file({}, path))
    for prefix in ('encoder.module', 'encoder.module.', 'encoder'):
        if prefix != 'encoder' or net.cfg is TIMM:
            assert net.is_loaded(**with_file({}, path, prefix=prefix))


@pytest.mark.parametrize('content', [{}, dict(optimizer=dict(state={})),
                                     dict(state_dict={}, epoch=1)])
def test_a_file_without_tensors(net: Net, tmp_path: Path, content: dict,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    """timm would ask the network for others."""

    def refuse(*args, **kwargs) -> None:
        raise AssertionError('the network is asked')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    torch.save(content, tmp_path / 'file.pth')
    with pytest.raises(ValueError, match='hold no tensors by name'):
        net.is_loaded(**with_file({}, tmp_path / 'file.pth'))


def test_a_folder_is_no_file(net: Net, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="folder.*'model.safetensors'"):
        net.is_loaded(**with_file({}, tmp_path))


KINDS = {
    'class': PretrainedInit,
    'module': 'mmengine.model.PretrainedInit',
    'path': 'mmengine.model.weight_init.PretrainedInit',
    'scope': 'mmengine.Pretrained',
}


@pytest.mark.parametrize('kind', KINDS)
def test_any_name_of_the_initializer(net: Net, tmp_path: Path, said: list,
                                     kind: str) -> None:
    """Lazy configs name classes, and by their paths once they are read."""
    path = tmp_path / 'file.pth'
    torch.save(dict(net.state), path)
    init_cfg = dict(type=KINDS[kind], checkpoint=str(path))
    for given in (init_cfg, [dict(type='Kaiming'), init_cfg]):
        assert net.is_loaded(init_cfg=given)
    assert not said
    key = next(iter(net.state))
    torch.save({k: v for k, v in net.state.items() if k != key}, path)
    with pytest.raises(ValueError, match=f'lack 1 tensors.*{key}'):
        net.is_loaded(init_cfg=init_cfg)


def test_timms_own_way_to_name_a_file(tmp_path: Path, said: list) -> None:
    """With `features_only` timm itself takes only files without a head."""
    model = drawn(timm.create_model('vit_tiny_patch16_224', **VIT))
    path = tmp_path / 'file.pth'
    torch.save(model.state_dict(), path)
    net = Net(TIMM, model.state_dict())
    assert net.is_loaded(checkpoint_path=str(path))
    assert net.is_loaded(checkpoint_path='', **with_file({}, path))
    assert not said


def test_trunks_named_by_their_classes(tmp_path: Path, said: list) -> None:
    path = tmp_path / 'file.pth'
    swin = dict(
        type=SwinTransformer,
        embed_dims=8,
        depths=[1] * 4,
        num_heads=[1, 2, 4, 8],
        window_size=4)
    model = timm.create_model('vit_tiny_patch16_224', **VIT)
    for cfg, theirs in ((dict(RESNET, type=ResNet), RESNET),
                        (dict(TIMM, type=TIMMBackbone), model),
                        (swin, dict(swin, out_indices=(3, )))):
        torch.save(drawn(theirs).state_dict(), path)
        build_trunk(with_file(cfg, path))
    line, = said
    assert "['norm0', 'norm1', 'norm2'] are fresh" in line


def test_the_tower_of_mmsegs_clip(tmp_path: Path, said: list) -> None:
    cfg = dict(
        type='mmseg.VisionTransformer',
        embed_dims=32,
        num_layers=2,
        num_heads=2,
        img_size=64,
        out_indices=(0, 1))
    theirs = drawn(cfg)
    path = tmp_path / 'file.pth'
    text = dict(logit_scale=torch.ones(()))
    torch.save(dict(text, **front('image_encoder.', theirs.state_dict())),
               path)
    init_cfg = dict(type='Pretrained_Part', checkpoint=str(path))
    trunk = build_trunk(dict(cfg, init_cfg=init_cfg))
    assert same(snapshot(trunk), snapshot(theirs))
    assert not any('random' in line for line in said)


def test_weights_of_a_part_are_called_that(tmp_path: Path,
                                           said: list) -> None:
    part = dict(
        type='mmseg.ResNet',
        depth=18,
        strides=(1, 2, 2, 2),
        dilations=(1, 1, 1, 1),
        contract_dilation=True)
    torch.save(drawn(part).state_dict(), tmp_path / 'file.pth')
    build_trunk(
        dict(
            type='mmseg.BiSeNetV1',
            backbone_cfg=with_file(part, tmp_path / 'file.pth')))
    line, = said
    assert "weights for ['backbone_cfg'] alone, so others are random" in line


@pytest.mark.parametrize('address, words', [
    ('http://127.0.0.1:1/x.pth', 'refused'),
    ('torchvision://resnett18', 'KeyError.* Check the name'),
    ('open-mmlab://nothing', '(KeyError|FileNotFoundError|not exist)'),
    ('mmcls://nothing', '(KeyError|FileNotFoundError|not exist)'),
    ('s3://bucket/x.pth', '(ImportError|petrel)')])
def test_addresses_name_their_setting(address: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(
            f"The trunk weights '{address}' (`model.backbone.trunk.init_cfg."
            'checkpoint`) cannot be read: ') + f'.*{words}') as caught:
        read_weights(address)
    assert is_user_error(caught.value)
