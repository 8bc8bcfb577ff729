# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Files of timm's models load into TIMMBackbone as timm loads them."""

import re
from pathlib import Path

import pytest
import timm
import torch
from _weights import drawn, outputs, with_file
from safetensors.torch import load_file, save_file

from _tiny import same, snapshot
from vim_mm.models.backbones import build_trunk
from vim_mm.registry import MODELS

TINY_VIT = dict(embed_dim=32, depth=3, num_heads=2, img_size=64)
#: Models of timm by name, and how each is made small.
NETS = dict(
    test_convnext={},
    test_resnet={},
    test_efficientnet={},
    davit_tiny=dict(
        depths=(1, 1, 1, 1), embed_dims=(8, 8, 16, 16),
        num_heads=(1, 1, 2, 2)),
    vit_tiny_patch16_224=TINY_VIT,
    vit_base_patch16_siglip_224=TINY_VIT,
    vit_base_patch16_clip_224=TINY_VIT,
    eva02_tiny_patch14_224=dict(TINY_VIT, img_size=56),
    vit_small_patch16_dinov3=TINY_VIT,
    swin_tiny_patch4_window7_224=dict(
        embed_dim=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2),
        window_size=2,
        img_size=64))
KINDS = ['mmpretrain.TIMMBackbone', 'mmseg.TIMMBackbone']


def config(name: str, kind: str = KINDS[0], **kwargs) -> dict:
    return dict(
        dict(type=kind, model_name=name, features_only=True, **NETS[name]),
        **kwargs)


def size(name: str) -> int:
    return NETS[name].get('img_size', 64)


@pytest.fixture(scope='module', params=NETS)
def net(request, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A model of timm, its file, and one that was tuned for 7 classes."""
    name, folder = request.param, tmp_path_factory.mktemp('timm')
    paths = folder / 'model.safetensors', folder / 'tuned.safetensors'
    model = drawn(timm.create_model(name, **NETS[name]))
    save_file(model.state_dict(), paths[0])
    model.reset_classifier(7)
    save_file(model.state_dict(), paths[1])
    return name, *paths


@pytest.mark.parametrize('kind', KINDS)
def test_equal_to_timm_bit_for_bit(net: tuple, kind: str) -> None:
    name, path, tuned = net
    # what timm itself makes of the file
    theirs = timm.create_model(
        name,
        features_only=True,
        pretrained=True,
        pretrained_cfg_overlay=dict(file=str(path), custom_load=False),
        **NETS[name]).eval().requires_grad_(False)
    for file in (path, tuned):
        trunk = build_trunk(with_file(config(name, kind), file))
        assert same(snapshot(trunk.timm_model), snapshot(theirs))
        pairs = zip(outputs(trunk, size(name)), outputs(theirs, size(name)))
        assert all(torch.equal(ours, right) for ours, right in pairs)


#: Wrapper key of the file, what is put before timm's names.
SHAPES = dict(
    ddp=('state_dict', 'module.'),
    averaged=('state_dict_ema', ''),
    mm=('state_dict', 'backbone.'),
    open_clip=(None, 'visual.trunk.'),
    own=('state_dict', 'backbone.timm_model.model.'))


@pytest.mark.parametrize('shape', SHAPES)
def test_wrapped_files(tmp_path: Path, shape: str) -> None:
    name = 'vit_tiny_patch16_224'
    model = drawn(timm.create_model(name, **NETS[name]))
    wrapper, prefix = SHAPES[shape]
    state = {f'{prefix}{k}': v for k, v in model.state_dict().items()}
    state['visual.head.proj.weight'] = torch.zeros(2, 2)
    other = {k: v + 1 for k, v in state.items()}
    path = tmp_path / 'file.pth'
    torch.save({'model': other, wrapper: state} if wrapper else state, path)
    trunk = build_trunk(with_file(config(name), path))
    own = model.state_dict()
    for key, value in trunk.timm_model.model.state_dict().items():
        assert torch.equal(value, own[key]), key
    if shape != 'own':
        prefix = f'{prefix}blocks'.rpartition('.')[0]
        again = build_trunk(with_file(config(name), path, prefix=prefix))
        assert same(snapshot(trunk), snapshot(again))


@pytest.mark.parametrize('name', [
    'vit_tiny_patch16_224', 'vit_base_patch16_siglip_224',
    'eva02_tiny_patch14_224', 'swin_tiny_patch4_window7_224'
])
def test_other_sizes_of_pictures(tmp_path: Path, name: str) -> None:
    path = tmp_path / 'model.safetensors'
    save_file(drawn(timm.create_model(name, **NETS[name])).state_dict(), path)
    larger = dict(NETS[name], img_size=2 * size(name))
    theirs = timm.create_model(
        name,
        features_only=True,
        pretrained=True,
        pretrained_cfg_overlay=dict(file=str(path), custom_load=False),
        **larger)
    trunk = build_trunk(
        with_file(config(name, img_size=larger['img_size']), path))
    assert same(snapshot(trunk.timm_model), snapshot(theirs))


def test_features_of_all_blocks(tmp_path: Path) -> None:
    """Without features_only the backbone is the whole model, but its head."""
    name = 'vit_tiny_patch16_224'
    model = drawn(timm.create_model(name, **NETS[name]))
    save_file(model.state_dict(), tmp_path / 'model.safetensors')
    trunk = build_trunk(
        with_file(
            config(name, features_only=False), tmp_path / 'model.safetensors'))
    model.reset_classifier(0, '')
    assert same(snapshot(trunk.timm_model), snapshot(model))


def test_learned_tensors_must_be_there(net: tuple, tmp_path: Path) -> None:
    name, path, _ = net
    state = load_file(path)
    key = next(k for k in state if re.match(r'(blocks|layer|stages).*wei', k))
    save_file({
        k: v
        for k, v in state.items() if k != key
    }, tmp_path / 'cut.safetensors')
    with pytest.raises(ValueError, match='lack 1 tensors'):
        build_trunk(with_file(config(name), tmp_path / 'cut.safetensors'))


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    name = 'vit_tiny_patch16_224'
    path = tmp_path / 'model.pth'
    with pytest.raises(FileNotFoundError, match='do not exist'):
        build_trunk(with_file(config(name), path))
    wide = timm.create_model(name, **dict(NETS[name], embed_dim=64))
    torch.save(wide.state_dict(), path)
    with pytest.raises(ValueError, match='size mismatch.*model_name'):
        build_trunk(with_file(config(name), path))
    torch.save(timm.create_model('test_resnet').state_dict(), path)
    with pytest.raises(ValueError, match=r'lack \d+ tensors.*another trunk'):
        build_trunk(with_file(config(name), path))


def test_nobody_says_that_they_are_random(
        net: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list = []
    monkeypatch.setattr('vim_mm.models.backbones.trunk.print_log',
                        lambda text, *_, **__: said.append(text))
    name, path, _ = net
    build_trunk(with_file(config(name), path))
    build_trunk(
        config(
            name,
            pretrained=True,
            pretrained_cfg_overlay=dict(file=str(path), custom_load=False)))
    assert not said
    build_trunk(config(name))
    assert 'random' in said[0]


def test_modules_know_their_trunk(tmp_path: Path) -> None:
    """The same file in any wrapping has one fingerprint."""
    name = 'vit_tiny_patch16_224'
    state = drawn(timm.create_model(name, **NETS[name])).state_dict()
    torch.save(dict(model=state), tmp_path / 'a.pth')
    save_file(state, tmp_path / 'b.safetensors')
    backbones = [
        MODELS.build(
            dict(type='vim_mm.ViMBackbone', trunk=trunk, probe_size=64))
        for trunk in (with_file(config(name), tmp_path / 'a.pth'),
                      with_file(config(name), tmp_path / 'b.safetensors'),
                      config(name))
    ]
    first, second, other = (each.trunk_fingerprint for each in backbones)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
