# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Rates for parts that there are not are told of, in whatever model."""

from math import inf, nan
from pathlib import Path
from typing import Any, List

import pytest
import torch
from mmengine.runner import FlexibleRunner, Runner
from torch import nn

import _distill
import _multitask
from _loading import lines
from _tiny import TRUNKS, build_backbone, build_runner, model_cfg
from vim_mm.engine import rate_names
from vim_mm.engine.rates import check_rates
from vim_mm.registry import MODELS

NAMES = ('backbone.layer1.0.conv1.weight', 'backbone.layer1.0.bn1.bias',
         'backbone.trunk.layers.0.ln1.weight', 'backbone.bank.n.up.weight',
         'neck.lateral_convs.0.conv.weight', 'decode_head.conv_seg.bias',
         'models.cls.head.fc.weight', 'models.det.bbox_head.conv_cls.weight')
MISSPELT = {
    'backbonne': 'backbone', 'bakcbone': 'backbone', 'haed': 'head',
    'hed': 'head', 'bbox_haed': 'bbox_head', 'decode_heads': 'decode_head',
    'nekc': 'neck', 'conv_sge': 'conv_seg', '.bnak': 'bank',
    'models.cls.haed': 'models.cls.head', 'modles.det': 'models.det',
    'models.cls.haed.fc': 'models.cls.head.fc',
    'backbone.lyaer1.0': 'backbone.layer1.0',
    'backbone.bnak': 'backbone.bank', 'cls.head.fcs': None,
}
#: Keys of the libraries' own configs.
INHERITED = ('absolute_pos_embed', 'relative_position_bias_table', 'norm',
             '.norm', '.cls_token', 'mask_token', 'query_embed', 'query_feat',
             'level_embed', 'backbone.patch_embed.norm', 'backbone.norm',
             'pos_block', 'downsample.1', 'q_bias', 'v_bias', '.gamma',
             'sampling_offsets', 'reference_points', 'backbone.encoder_vq',
             '.rel_pos_w', 'language_model', '.attention_biases',
             'branch_3x3.norm', 'backbone.stages.3.blocks.1.norm')


def model_of(*names: str) -> nn.Module:
    """A model with parameters of these names."""
    model = nn.Module()
    for name in names:
        part, words = model, name.split('.')
        for word in words[:-1]:
            if word not in part._modules:
                part.add_module(word, nn.Module())
            part = part._modules[word]
        part.register_parameter(words[-1], nn.Parameter(torch.ones(2)))
    return model


def optim(**paramwise: Any) -> dict:
    return dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=.1),
                paramwise_cfg=paramwise)


def of_keys(*keys: str) -> dict:
    return optim(custom_keys={key: dict(lr_mult=2.) for key in keys})


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    return lines(monkeypatch, rate_names)


@pytest.mark.parametrize('key', MISSPELT)
def test_a_misspelt_part(key: str, told: list) -> None:
    near, model = MISSPELT[key], model_of(*NAMES)
    if near is None:  # of a short word
        check_rates(of_keys(key), model)
        assert repr(key) in told[0]
        return
    with pytest.raises(ValueError, match=f"\\['{key}'\\]` is the rate of no "
                       f"parameter; perhaps '{near}' is meant"):
        check_rates(of_keys(key), model)


@pytest.mark.parametrize('trunk', [*TRUNKS, 'names', 'own'])
def test_keys_that_a_config_inherits(trunk: str, told: list) -> None:
    """One line names all that are of no use here."""
    if trunk == 'names':
        model = model_of(*NAMES)
    elif trunk == 'own':
        model = nn.ModuleDict(dict(backbone=build_backbone(new_module='n')))
    else:
        model = nn.ModuleDict(dict(backbone=MODELS.build(TRUNKS[trunk])))
    check_rates(of_keys(*INHERITED), model)
    lost = [line for line in told if 'change no rate' in line]
    assert len(lost) == 1 and 'query_embed' not in ''.join(
        name for name, _ in model.named_parameters())


@pytest.mark.parametrize('key', ['neck', 'cls', '.bn1.', 'conv', 'one.no'])
def test_parts_that_there_are(key: str, told: list) -> None:
    check_rates(of_keys(key), model_of(*NAMES))
    assert bool(told) == (key == 'one.no')


@pytest.mark.parametrize(('paramwise', 'words'), [
    (dict(norm_decay_mul=0.), 'paramwise_cfg.norm_decay_mult` is meant'),
    (dict(custom_key={}), 'paramwise_cfg.custom_keys` is meant'),
    (dict(bypas_duplicate=True), 'paramwise_cfg.bypass_duplicate` is meant'),
    (dict(bias_lr_mul=2.), 'paramwise_cfg.bias_lr_mult` is meant'),
    (dict(norm_decay_mult=nan), 'norm_decay_mult` is nan; give a number'),
    (dict(bias_lr_mult=-1.), 'bias_lr_mult` is -1.0; give a number'),
    (dict(dwconv_decay_mult='0'), "dwconv_decay_mult` is '0'; give a number"),
    (dict(custom_keys=['head']), r"custom_keys` is \['head'\]; give a dict"),
    (dict(custom_keys={3: dict(lr_mult=.1)}), 'has the key 3; give a part'),
    (dict(custom_keys=dict(neck=.1)), r"\['neck'\]` is 0.1; give a dict"),
    (dict(custom_keys=dict(neck=dict(lr_mul=2.))),
     r"\['neck'\].lr_mult` is meant"),
    (dict(custom_keys=dict(neck=dict(decay_mult=inf))),
     r"\['neck'\].decay_mult` is inf"),
    ('norm_decay_mult=0', "paramwise_cfg` is 'norm_decay_mult=0'; give"),
    ([dict(custom_keys={})], 'paramwise_cfg` is .*; give a dict'),
])
def test_what_stands_in_paramwise_cfg(paramwise: Any, words: str) -> None:
    cfg = dict(optim(), paramwise_cfg=paramwise)
    with pytest.raises(ValueError, match=words):
        check_rates(cfg, model_of(*NAMES))


@pytest.mark.parametrize(('constructor', 'said'), [
    (None, True), ('DefaultOptimWrapperConstructor', True),
    ('LearningRateDecayOptimWrapperConstructor', False)])
def test_names_that_a_constructor_reads(constructor: Any, said: bool,
                                        told: list) -> None:
    cfg = optim(num_layers=12, layer_decay_rate=.9)
    check_rates(dict(cfg, constructor=constructor), model_of(*NAMES))
    assert bool(told) == said
    assert not said or 'layer_decay_rate' in told[0]


def multitask(folder: Path, wrapper: dict) -> Any:
    return _multitask.build(folder, 1, optim_wrapper=wrapper)


def student(folder: Path, wrapper: dict) -> Any:
    return build_runner('cls', _distill.distiller_cfg(folder, 'cls'), folder,
                        iters=1, optim_wrapper=wrapper)


def plain(folder: Path, wrapper: dict, **kwargs: Any) -> Any:
    model = model_cfg('cls', {})
    model.backbone = _multitask.resnet()
    model.neck = dict(type='mmpretrain.GlobalAveragePooling')
    return build_runner('cls', model, folder, iters=1, optim_wrapper=wrapper,
                        **kwargs)


@pytest.mark.parametrize(('build', 'key', 'kind'), [
    (multitask, 'models.cls.haed', Runner), (student, 'bakcbone', Runner),
    (plain, 'haed', Runner), (plain, 'haed', FlexibleRunner)])
def test_any_run_is_looked_at(build: Any, key: str, kind: type,
                              tmp_path: Path,
                              monkeypatch: pytest.MonkeyPatch) -> None:
    more = {}
    if kind is FlexibleRunner:
        monkeypatch.setattr('_tiny.Runner', kind)
        more = dict(strategy=dict(type='SingleDeviceStrategy'))
    run = build(tmp_path, of_keys(key), **more)
    with pytest.raises(ValueError, match='is the rate of no parameter'):
        run.train()
