# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Weights of trunks are loaded at once, strictly."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from _tiny import TRUNKS, fill, same, save_trunk, snapshot, vit
from vim_mm.models.backbones import build_trunk, load_trunk_weights
from vim_mm.registry import MODELS


@pytest.fixture(scope='module')
def trunk() -> torch.nn.Module:
    trunk = MODELS.build(vit())
    fill(trunk, seed=1)
    return trunk


def build(path: Path, **kwargs) -> torch.nn.Module:
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    return build_trunk(vit(init_cfg=init_cfg, **kwargs))


def test_frozen_in_eval_mode(tmp_path: Path) -> None:
    trunk = build_trunk(save_trunk(tmp_path / 'trunk.pth'))
    assert not trunk.training
    assert not any(p.requires_grad for p in trunk.parameters())


@pytest.mark.parametrize('kind', ['plain', 'mm', 'backbone', 'safetensors'])
def test_stock_files(tmp_path: Path, trunk: torch.nn.Module,
                     kind: str) -> None:
    state = {k: v.clone() for k, v in trunk.state_dict().items()}
    path = tmp_path / 'weights.pth'
    if kind == 'plain':
        torch.save(state, path)
    elif kind == 'mm':
        torch.save(dict(meta={}, state_dict=state), path)
    elif kind == 'backbone':
        state = {f'backbone.{k}': v for k, v in state.items()}
        state['head.fc.weight'] = torch.zeros(2, 2)
        torch.save(dict(state_dict=state), path)
    else:
        path = tmp_path / 'weights.safetensors'
        save_file(state, path)
    assert same(snapshot(build(path)), snapshot(trunk))


def test_a_prefix_of_ones_own(tmp_path: Path,
                              trunk: torch.nn.Module) -> None:
    path = tmp_path / 'weights.pth'
    torch.save({f'visual.{k}': v for k, v in trunk.state_dict().items()}, path)
    other = MODELS.build(vit())
    load_trunk_weights(other, str(path), prefix='visual.')
    assert same(snapshot(other), snapshot(trunk))


def test_position_embeddings_are_resized(tmp_path: Path,
                                         trunk: torch.nn.Module) -> None:
    path = tmp_path / 'weights.pth'
    torch.save(trunk.state_dict(), path)
    larger = build(path, img_size=84)
    assert larger.pos_embed.shape == (1, 37, 32)
    assert torch.equal(larger.pos_embed[:, 0], trunk.pos_embed[:, 0])
    # no constant, no noise: the corner patch stays near its old value
    assert larger.pos_embed[:, 1:].std() > 0.5 * trunk.pos_embed[:, 1:].std()


def test_wrong_files_are_refused(tmp_path: Path,
                                 trunk: torch.nn.Module) -> None:
    with pytest.raises(FileNotFoundError, match='vim-mm convert-trunk'):
        build(tmp_path / 'absent.pth')
    path = tmp_path / 'weights.pth'
    state = dict(trunk.state_dict())
    state.pop('layers.1.attn.proj.weight')
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"lack 1 tensors.*layers\.1\.attn"):
        build(path)
    torch.save(MODELS.build(TRUNKS['resnet']).state_dict(), path)
    with pytest.raises(ValueError, match='belong to another trunk'):
        build(path)
    torch.save(trunk.state_dict(), path)
    wider = dict(
        embed_dims=64, num_layers=3, num_heads=2, feedforward_channels=64)
    with pytest.raises(ValueError, match='are of another trunk'):
        build(path, arch=wider)


def test_layers_other_than_the_file_names_are_refused(
        tmp_path: Path, trunk: torch.nn.Module) -> None:
    """No shape betrays another activation or another epsilon."""
    path = tmp_path / 'weights.safetensors'
    recipe = vit(layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU')))
    save_file(trunk.state_dict(), path, dict(backbone=json.dumps(recipe)))
    right = dict(layer_cfgs=recipe['layer_cfgs'])
    # what a run may choose: outputs, sizes, dropout
    build(path, **right, out_indices=[2], img_size=84, drop_path_rate=0.1)
    with pytest.raises(ValueError, match=r"QuickGELU\(\) as 'layers\.0\.ffn"):
        build(path)
    with pytest.raises(ValueError, match=r'eps=1e-06.*eps=0\.01'):
        build(path, **right, norm_cfg=dict(type='LN', eps=1e-2))


def test_a_file_names_registered_types_only(tmp_path: Path,
                                            trunk: torch.nn.Module) -> None:
    path = tmp_path / 'weights.safetensors'
    victim = tmp_path / 'victim'
    recipe = dict(type='os.mkdir', path=str(victim))
    for each in (recipe, vit(act_cfg=recipe)):
        save_file(trunk.state_dict(), path, dict(backbone=json.dumps(each)))
        with pytest.raises(ValueError, match='os.mkdir.*no library registers'):
            build(path)
    assert not victim.exists()
