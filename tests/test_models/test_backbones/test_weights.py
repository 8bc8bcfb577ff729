# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Stock files load as the library of a trunk loads them."""

import re
from pathlib import Path
from typing import Dict

import pytest
import torch
from _weights import drawn, outputs, with_file
from mmengine.config import ConfigDict
from torch import nn

from _tiny import same, snapshot, vit
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
        type='mmpretrain.DaViT', arch=SWIN, window_size=4, pad_small_map=True),
           dict(out_indices=(3, )), 'norm0', 'norm1', 'norm2'),
    mvit=(dict(
        type='mmpretrain.MViT',
        arch=dict(
            embed_dims=8,
            num_layers=4,
            num_heads=1,
            downscale_indices=[1, 2, 3]),
        img_size=64), dict(out_scales=(3, )), 'norm0', 'norm1', 'norm2'),
    vit=(vit(out_type='avg_featmap'), dict(out_type='featmap'), 'ln2'),
    # norms of a class of its own, and where another module keeps the place
    hornet=(dict(
        type='mmpretrain.HorNet',
        arch=dict(
            base_dim=8,
            depths=[1] * 4,
            orders=[2] * 4,
            dw_cfg=[dict(type='DW', kernel_size=7)] * 4)),
            dict(out_indices=(3, )), 'norm0', 'norm1', 'norm2'),
    replknet=(dict(
        type='mmpretrain.RepLKNet',
        arch=dict(
            large_kernel_sizes=[7] * 4,
            layers=[1] * 4,
            channels=[8] * 4,
            small_kernel=3,
            dw_ratio=1)), dict(out_indices=(3, )), 'stages.0.norm',
              'stages.1.norm', 'stages.2.norm'),
)


def all_outputs(cfg: dict, stock: dict) -> dict:
    """The config with the outputs of all stages."""
    return cfg if 'out_type' in cfg else dict(
        cfg, **{next(iter(stock)): (0, 1, 2, 3)})


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
        assert (value == float(key.endswith(('weight', '_var')))).all()


@pytest.mark.parametrize('name', OUTPUT_NORMS)
def test_other_learned_tensors_must_be_there(tmp_path: Path,
                                             name: str) -> None:
    cfg, stock, *_ = OUTPUT_NORMS[name]
    state = MODELS.build(dict(cfg, **stock)).state_dict()
    inside = [k for k in state if re.search(r'\..*(norm|bn)|\.ln', k)]
    path = tmp_path / 'stock.pth'
    for key in (inside[2], next(iter(state))):
        torch.save({k: v for k, v in state.items() if k != key}, path)
        with pytest.raises(ValueError, match=f'lack 1 tensors.*{key}'):
            build_trunk(with_file(all_outputs(cfg, stock), path))


def test_norms_between_stages_must_be_there(tmp_path: Path) -> None:
    """VAN's are named like those of outputs, and feed the next stage."""
    cfg = dict(
        type='mmpretrain.VAN',
        arch=dict(embed_dims=[8] * 4, depths=[1] * 4, ffn_ratios=[1] * 4),
        out_indices=(0, 1, 2, 3))
    state = MODELS.build(cfg).state_dict()
    del state['norm2.weight']
    torch.save(state, tmp_path / 'cut.pth')
    with pytest.raises(ValueError, match='lack 1 tensors.*norm2.weight'):
        build_trunk(with_file(cfg, tmp_path / 'cut.pth'))


@pytest.mark.parametrize('name', ['mmpretrain.PCPVT', 'mmseg.SVT'])
def test_norms_after_stages_feed_the_next_ones(tmp_path: Path,
                                               name: str) -> None:
    sizes = dict(depths=[2] * 4, num_heads=[1] * 4, mlp_ratios=[2] * 4,
                 embed_dims=[8] * 4, sr_ratios=[8, 4, 2, 1])
    cfg = dict(sizes, type=name, windiow_sizes=[7] * 4, out_indices=(0, 3))
    if name == 'mmpretrain.PCPVT':
        arch = dict(sizes, patch_sizes=[4, 2, 2, 2], strides=[4, 2, 2, 2])
        cfg = dict(type=name, arch=arch, out_indices=(0, 3))
    state = MODELS.build(dict(cfg, norm_after_stage=False)).state_dict()
    torch.save(state, tmp_path / 'classifier.pth')
    cfg = with_file(cfg, tmp_path / 'classifier.pth')
    with pytest.raises(ValueError, match='norm_after_stage=False'):
        build_trunk(dict(cfg, norm_after_stage=True))
    build_trunk(dict(cfg, norm_after_stage=False))


def test_statistics_of_norms_must_be_there(tmp_path: Path) -> None:
    cfg = dict(type='mmdet.ResNet', depth=18, base_channels=8, stem_channels=8)
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
    'mmdet.DetectoRS_ResNet':
    dict(
        depth=50,
        base_channels=8,
        stem_channels=8,
        conv_cfg=dict(type='ConvAWS')),
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
    dict(embed_dims=[8] * 4, mlp_ratios=[2] * 4, depths=[1] * 4),
    'mmseg.PIDNet':
    dict(channels=8, ppm_channels=8, num_stem_blocks=1, num_branch_blocks=1),
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


# ------------------------------------------------ loaders of the classes


def official_swin(model: nn.Module) -> Dict[str, torch.Tensor]:
    """Names of Microsoft's files, without the norms of outputs."""
    names = (('stages.', 'layers.'), ('.w_msa.', '.'), ('.ffn.layers.0.0.',
                                                        '.mlp.fc1.'),
             ('.ffn.layers.1.', '.mlp.fc2.'), ('patch_embed.projection.',
                                               'patch_embed.proj.'))
    state = {}
    for key, value in model.state_dict().items():
        for ours, theirs in names:
            key = key.replace(ours, theirs)
        if not key.startswith('norm'):
            state[key] = value
    state['norm.weight'] = torch.ones(64)
    state['head.weight'] = torch.ones(10, 64)
    return state


def loaded_by_library(cfg: dict, path: Path) -> nn.Module:
    init_cfg = ConfigDict(type='Pretrained', checkpoint=str(path))
    model = MODELS.build(dict(cfg, init_cfg=init_cfg))
    model.init_weights()
    return model


@pytest.mark.parametrize('window', [4, 7])
def test_official_swin(tmp_path: Path, said: list, window: int) -> None:
    """Converted, the bias tables of windows resized, as the class does."""
    cfg = dict(MM['mmdet.SwinTransformer'], type='mmdet.SwinTransformer')
    path = tmp_path / 'official.pth'
    torch.save(dict(model=official_swin(drawn(cfg))), path)
    cfg.update(window_size=window, convert_weights=True)
    trunk = build_trunk(with_file(cfg, path))
    if window == 4:  # the class refuses the indices of other windows
        assert same(snapshot(trunk), snapshot(loaded_by_library(cfg, path)))
    else:
        part = trunk.stages[0].blocks[0].attn.w_msa
        assert part.relative_position_bias_table.shape == (169, 1)
        assert part.relative_position_bias_table.std() > .05
        assert part.relative_position_index.shape == (49, 49)
    assert "['norm0', 'norm1', 'norm2', 'norm3'] are fresh" in said[0]
    cfg['convert_weights'] = False
    with pytest.raises(ValueError, match='convert_weights=True.* official'):
        build_trunk(with_file(cfg, path))


RESIZED = [
    'mmseg.VisionTransformer', 'mmpretrain.ViTEVA02',
    'mmpretrain.VisionTransformer', 'mmpretrain.SwinTransformerV2'
]


@pytest.mark.parametrize('name', RESIZED)
def test_other_sizes_of_pictures(tmp_path: Path, name: str) -> None:
    cfg = dict(
        MM.get(name, dict(vit(), img_size=64, patch_size=16)), type=name)
    path = tmp_path / 'small.pth'
    torch.save(dict(state_dict=drawn(cfg).state_dict()), path)
    cfg['img_size'] = 96
    trunk = build_trunk(with_file(cfg, path))
    theirs = loaded_by_library(cfg, path)
    assert same(snapshot(trunk), snapshot(theirs))
    slots = [k for k, _ in trunk.named_children()]
    theirs.requires_grad_(False)
    assert trunk_fingerprint(trunk, slots) == trunk_fingerprint(theirs, slots)


@pytest.mark.parametrize('name', ['mmseg.MAE', 'mmseg.BEiT'])
def test_an_error_inside_a_loader_is_shown(tmp_path: Path, name: str) -> None:
    cfg = dict(MM[name], type=name)
    state = drawn(cfg).state_dict()
    for key in state:
        if key.endswith('bias_table'):
            state[key] = state[key][:, 0]
    torch.save(state, tmp_path / 'odd.pth')
    with pytest.raises(ValueError, match='cannot be loaded.*not enough val'):
        build_trunk(with_file(cfg, tmp_path / 'odd.pth'))


@pytest.mark.parametrize('name',
                         ['mmseg.MAE', 'mmseg.BEiT', 'mmpretrain.BEiTViT'])
def test_what_new_versions_of_scipy_lack_is_named(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:

    def gone(*args, **kwargs) -> None:
        raise NotImplementedError('`interp2d` has been removed in SciPy')

    monkeypatch.setattr('scipy.interpolate.interp2d', gone)
    cfg = dict(MM[name], type=name)
    torch.save(drawn(cfg).state_dict(), tmp_path / 'small.pth')
    with pytest.raises(ValueError, match='interp2d.*scipy<1.14'):
        build_trunk(with_file(dict(cfg, img_size=96), tmp_path / 'small.pth'))


@pytest.mark.parametrize('name', ['mmdet.ResNet', 'mmseg.SwinTransformer'])
def test_prefix_as_mmengine_reads_it(tmp_path: Path, name: str) -> None:
    cfg = dict(MM[name], type=name)
    theirs, other = drawn(cfg), drawn(cfg, seed=1)
    state = {f'backbone.{k}': v for k, v in theirs.state_dict().items()}
    state.update((f'b.{k}', v) for k, v in other.state_dict().items())
    path = tmp_path / 'two.pth'
    torch.save(state, path)
    for prefix, right in (('backbone', theirs), ('backbone.', theirs),
                          ('b', other), (None, theirs)):
        extra = {} if prefix is None else dict(prefix=prefix)
        trunk = build_trunk(with_file(cfg, path, **extra))
        assert same(snapshot(trunk), snapshot(right))
    with pytest.raises(ValueError, match="no name in it begins with 'neck.'"):
        build_trunk(with_file(cfg, path, prefix='neck'))


def test_a_choice_that_is_the_users(tmp_path: Path) -> None:
    cfg = dict(MM['mmdet.ResNet'], type='mmdet.ResNet')
    path = tmp_path / 'two.pth'
    torch.save(
        {
            f'{side}.{k}': v
            for side in ('query', 'key')
            for k, v in drawn(cfg).state_dict().items()
        }, path)
    with pytest.raises(ValueError, match=r"'key\.', 'query\.'.*prefix"):
        build_trunk(with_file(cfg, path))


def test_the_older_way_to_name_a_file(tmp_path: Path, said: list) -> None:
    cfg = dict(MM['mmdet.ResNet'], type='mmdet.ResNet')
    theirs = drawn(cfg)
    path = tmp_path / 'resnet.pth'
    torch.save(theirs.state_dict(), path)
    trunk = build_trunk(dict(cfg, pretrained=str(path)))
    assert same(snapshot(trunk), snapshot(theirs))
    assert not said
    torch.save({}, path)
    with pytest.raises(ValueError, match='hold no tensors'):
        build_trunk(dict(cfg, pretrained=str(path)))
