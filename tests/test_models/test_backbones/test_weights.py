# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Stock files load as the library of a trunk loads them."""

import logging
from pathlib import Path
from typing import Callable, Dict

import pytest
import timm
import torch
from mmengine.config import ConfigDict
from safetensors.torch import save_file
from torch import nn

from _tiny import build_backbone, fill, same, snapshot, vit
from vim_mm.models.backbones import build_trunk
from vim_mm.registry import MODELS
from vim_mm.zoo import trunk_fingerprint

SWIN = dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2])
#: Config, the outputs of its stock file, the norms made for others.
OUTPUT_NORMS = dict(
    swin=(dict(
        type='mmpretrain.SwinTransformer',
        arch=SWIN,
        img_size=64,
        window_size=4,
        pad_small_map=True), dict(out_indices=(3, )), 'norm0', 'norm1',
          'norm2'),
    swin_v2=(dict(
        type='mmpretrain.SwinTransformerV2',
        arch=dict(
            embed_dims=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            extra_norm_every_n_blocks=0),
        img_size=64,
        window_size=[4, 4, 4, 2],
        pad_small_map=True), dict(out_indices=(3, )), 'norm0', 'norm1',
             'norm2'),
    convnext=(dict(
        type='mmpretrain.ConvNeXt',
        arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 16, 16]),
        gap_before_final_norm=False), dict(out_indices=(3, )), 'norm0',
              'norm1', 'norm2'),
    davit=(dict(
        type='mmpretrain.DaViT',
        arch=SWIN,
        window_size=4,
        pad_small_map=True), dict(out_indices=(3, )), 'norm0', 'norm1',
           'norm2'),
    mvit=(dict(
        type='mmpretrain.MViT',
        arch=dict(
            embed_dims=8,
            num_layers=4,
            num_heads=1,
            downscale_indices=[1, 2, 3]),
        img_size=64), dict(out_scales=(3, )), 'norm0', 'norm1', 'norm2'),
    vit=(vit(out_type='avg_featmap'), dict(out_type='featmap'), 'ln2'),
)


def all_outputs(cfg: dict, stock: dict) -> dict:
    """The config with the outputs of all stages."""
    return cfg if 'out_type' in cfg else dict(cfg, **
                                              {next(iter(stock)): (0, 1, 2,
                                                                   3)})


def with_file(cfg: dict, path: Path, **kwargs) -> dict:
    return dict(
        cfg,
        init_cfg=dict(type='Pretrained', checkpoint=str(path), **kwargs))


def drawn(cfg: dict, seed: int = 0) -> nn.Module:
    """The library's own model, every number of it drawn."""
    model = MODELS.build(cfg)
    fill(model, 0.1, seed)
    for part in model.modules():  # statistics of norms are learned, too
        if getattr(part, 'running_var', None) is not None:
            nn.init.uniform_(part.running_mean)
            nn.init.uniform_(part.running_var, .5, 2.)
    # torch's attention rounds otherwise where its weights learn
    model.requires_grad_(False)
    model.eval()
    return model


@torch.no_grad()
def outputs(model: nn.Module, size: int = 64) -> list:
    found = model(torch.rand(2, 3, size, size, generator=torch.Generator()))
    return [found] if isinstance(found, torch.Tensor) else list(found)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list:
    """What is logged while a trunk is built."""
    lines: list = []
    for module in ('trunk', 'weights'):
        monkeypatch.setattr(f'vim_mm.models.backbones.{module}.print_log',
                            lambda text, *_, **__: lines.append(text))
    return lines


# ------------------------------------------------------ norms of outputs


@pytest.mark.parametrize('name', OUTPUT_NORMS)
def test_norms_of_outputs_are_fresh(tmp_path: Path, said: list,
                                    name: str) -> None:
    cfg, stock, *norms = OUTPUT_NORMS[name]
    theirs = drawn(dict(cfg, **stock))
    path = tmp_path / 'stock.pth'
    torch.save(dict(state_dict=theirs.state_dict()), path)
    trunk = build_trunk(with_file(all_outputs(cfg, stock), path))
    line, = [text for text in said if 'fresh' in text]
    assert all(f"'{norm}'" in line for norm in norms)
    own = trunk.state_dict()
    for key, value in theirs.state_dict().items():
        assert torch.equal(own.pop(key), value), key
    assert {key.rpartition('.')[0] for key in own} == set(norms)
    for key, value in own.items():
        assert (value == float(key.endswith('weight'))).all()


@pytest.mark.parametrize('name', OUTPUT_NORMS)
def test_other_learned_tensors_must_be_there(tmp_path: Path,
                                             name: str) -> None:
    cfg, stock, *_ = OUTPUT_NORMS[name]
    state = MODELS.build(dict(cfg, **stock)).state_dict()
    inside = [k for k in state if '.' in k and 'norm' in k or '.ln' in k]
    path = tmp_path / 'stock.pth'
    for key in (inside[-3], next(iter(state))):
        torch.save({k: v for k, v in state.items() if k != key}, path)
        with pytest.raises(ValueError, match=f'lack 1 tensors.*{key}'):
            build_trunk(with_file(all_outputs(cfg, stock), path))


def test_norms_between_stages_must_be_there(tmp_path: Path) -> None:
    """VAN's are named like those of outputs, and feed the next stage."""
    cfg = dict(
        type='mmpretrain.VAN',
        arch=dict(
            embed_dims=[8] * 4, depths=[1] * 4, ffn_ratios=[1] * 4),
        out_indices=(0, 1, 2, 3))
    state = MODELS.build(cfg).state_dict()
    del state['norm2.weight']
    torch.save(state, tmp_path / 'cut.pth')
    with pytest.raises(ValueError, match='lack 1 tensors.*norm2.weight'):
        build_trunk(with_file(cfg, tmp_path / 'cut.pth'))


def test_statistics_of_norms_must_be_there(tmp_path: Path) -> None:
    cfg = dict(type='mmdet.ResNet', depth=18, base_channels=8,
               stem_channels=8)
    state = MODELS.build(cfg).state_dict()
    counts = {k: v for k, v in state.items() if 'num_batches' not in k}
    torch.save(counts, tmp_path / 'no_counts.pth')
    build_trunk(with_file(cfg, tmp_path / 'no_counts.pth'))
    del counts['layer1.0.bn1.running_var']
    torch.save(counts, tmp_path / 'cut.pth')
    with pytest.raises(ValueError, match='lack 1 tensors.*running_var'):
        build_trunk(with_file(cfg, tmp_path / 'cut.pth'))


# ------------------------------------------- files of all libraries' trunks

VIT_SIZES = dict(embed_dims=32, num_layers=2, num_heads=2)
MM = {
    'mmpretrain.SwinTransformerV2':
    dict(
        arch=OUTPUT_NORMS['swin_v2'][0]['arch'],
        img_size=64,
        window_size=[4, 4, 4, 2],
        pad_small_map=True),
    'mmpretrain.ViTEVA02':
    dict(
        arch=dict(VIT_SIZES, feedforward_channels=64),
        img_size=64,
        patch_size=16,
        out_type='featmap'),
    'mmpretrain.BEiTViT':
    dict(
        arch=dict(VIT_SIZES, feedforward_channels=64),
        img_size=64,
        out_type='featmap'),
    'mmpretrain.ResNet':
    dict(depth=18, base_channels=8, stem_channels=8),
    'mmdet.SwinTransformer':
    dict(SWIN, num_heads=[1, 2, 4, 8], window_size=4),
    'mmdet.PyramidVisionTransformer':
    dict(
        pretrain_img_size=64,
        embed_dims=8,
        num_layers=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        out_indices=(0, 1, 2, 3)),
    'mmdet.ResNet':
    dict(depth=18, base_channels=8, stem_channels=8),
    'mmseg.SwinTransformer':
    dict(SWIN, num_heads=[1, 2, 4, 8], window_size=4, pretrain_img_size=64),
    'mmseg.VisionTransformer':
    dict(VIT_SIZES, img_size=64, out_indices=(0, 1), final_norm=True),
    'mmseg.BEiT':
    dict(VIT_SIZES, img_size=64, out_indices=(0, 1)),
    'mmseg.MAE':
    dict(VIT_SIZES, img_size=64, out_indices=(0, 1)),
    'mmseg.MixVisionTransformer':
    dict(embed_dims=8, num_layers=[1] * 4, num_heads=[1] * 4),
    'mmseg.MSCAN':
    dict(
        embed_dims=[8] * 4, mlp_ratios=[2] * 4, depths=[1] * 4),
    'mmseg.PIDNet':
    dict(
        channels=8, ppm_channels=8, num_stem_blocks=1, num_branch_blocks=1),
}
#: What files are made of: wrapper key and prefix of names.
SHAPES = dict(
    bare=(None, ''),
    mm=('state_dict', 'backbone.'),
    ddp=('model', 'module.'),
    compiled=('model', 'module._orig_mod.'),
    teacher=('teacher', 'backbone.'),
    detector=('state_dict', 'student.backbone.'),
    averaged=('model_ema', 'trunk.'))


def write(model: nn.Module, path: Path, wrapper: str, prefix: str) -> None:
    state = {f'{prefix}{k}': v for k, v in model.state_dict().items()}
    head = {'head.fc.weight': torch.zeros(2, 2)}
    others = dict(epoch=3, student={k: v + 1 for k, v in state.items()})
    if wrapper is None:
        torch.save(dict(head, **state), path)
    else:
        torch.save(dict(others, **{wrapper: dict(head, **state)}), path)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('name', MM)
def test_any_file_of_ones_own_library(tmp_path: Path, name: str,
                                      shape: str) -> None:
    cfg = dict(MM[name], type=name)
    theirs = drawn(cfg)
    write(theirs, tmp_path / 'file.pth', *SHAPES[shape])
    trunk = build_trunk(with_file(cfg, tmp_path / 'file.pth'))
    assert same(snapshot(trunk), snapshot(theirs))
    for ours, right in zip(outputs(trunk), outputs(theirs)):
        assert torch.equal(ours, right)
