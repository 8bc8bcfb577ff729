# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What users of PEFT and mmdet get wrong first is answered in a sentence."""

from pathlib import Path

import pytest
import torch

from _tiny import (add_modules, build_backbone, fill, fusion_neck, occupy,
                   same, save_trunk, snapshot, vit)
from vim_mm.models.adapters import build_adapter
from vim_mm.models.fusion import build_fusion
from vim_mm.registry import MODELS
from vim_mm.zoo import Zoo, save_module


@pytest.mark.parametrize(('cfg', 'sentence'), [
    (dict(type='LoRA', r=8, lora_alpha=16),
     'LoRA takes no lora_alpha, r; it takes rank, alpha, drop_rate'),
    (dict(type='SideLadder', hidden_dim=8),
     'SideLadder takes no hidden_dim; perhaps hidden_dims is meant; '
     'it takes hidden_dims'),
    (dict(type='ConvPass', hidden_dims=0), '`hidden_dims` is 0'),
    (dict(type='BottleneckAdapter', hidden_dims=2.5), '`hidden_dims` is 2.5'),
    (dict(type='LoRA', rank=0), '`rank` is 0'),
    ('ConvPass', r"`adapter` is 'ConvPass'; give .* dict\(type='ConvPass'\)"),
])
def test_of_adapters(cfg: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_adapter(cfg, 8)


@pytest.mark.parametrize(('cfg', 'sentence'), [
    ('EnsMoE', "`fusion` is 'EnsMoE'"),
    (dict(type='EnsMoE', topk=2), 'EnsMoE takes no topk; .*top_k'),
    # left over from a `_base_` with another type
    (dict(type='vim_mm.LinearMoE', top_k=2),
     'LinearMoE takes no top_k; .*tasks, learn, init_cfg .*_delete_'),
    (dict(type='EnsMoE', top_k=1.5), '`top_k` is 1.5'),
    (dict(type='EnsMoE', tasks='mine'), r"the name 'mine'; .*\['mine'\]"),
    (dict(type='EnsMoE', tasks=dict(x='abc')), '`fusion.tasks.x` is the name'),
    (dict(type='EnsMoE', tasks=[]), '`fusion.tasks` is empty'),
    (dict(type='EnsMoE', tasks=['x', 'x']), "a task 'x' already"),
    (dict(type='FixedFusion', weights=[.5, .5]), r'such as dict\(a=1.\)'),
    (dict(type='FixedFusion', weights=dict(a=float('nan'))), 'finite'),
    (dict(type='FixedFusion', weights=dict(s0=dict(a=float('inf')))),
     'finite'),
    (dict(type='FixedFusion', weights=dict(s0=dict(z=1.))),
     r"for \['z'\], but the bank holds \['a', 'b'\]"),
    (dict(type='FixedFusion', weights=dict(s7=dict(a=1.))),
     r"for \['s7'\], but the modules sit in \['s0'\]"),
    (dict(type='FixedFusion', weights=dict(a=1., s0=dict(a=1.))), 'not both'),
])
def test_of_fusions(cfg: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_fusion(cfg, occupy('ab', 4))


@pytest.mark.parametrize(('settings', 'sentence'), [
    (dict(modules='trees', zoo='zoo'), '`model.backbone.modules` is the name'),
    (dict(adapter='ConvPass'), '`model.backbone.adapter` is'),
    (dict(trunk=dict(type='mmpretrain.ViTransformer')),
     'ViTransformer cannot be built .*no type .*`model.backbone.trunk`'),
    (dict(trunk=dict(type='mmpretrain.VisionTransformer', arch='x')),
     'VisionTransformer cannot be built .*x.*`model.backbone.trunk`'),
    (dict(trunk=dict(type='mmpretrain.VisionTransformer', size=8)),
     'VisionTransformer cannot be built .*size'),
    *[(dict(new_module='n', adapter=dict(type=kind, drop_rate=rate)),
       '`drop_rate` is .*; give a number from 0 to below 1')
      for kind in ('ConvPass', 'BottleneckAdapter', 'LoRA')
      for rate in (1., 2., -.1, '0', float('nan'))],
    (dict(slots=['attn', 'ffn']), r"\['attn', 'ffn'\] is no regular"),
])
def test_of_backbones(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_backbone(**settings)


@pytest.mark.parametrize('size', [0, -3, '56', (56, 0), 5.5])
def test_probe_sizes_of_no_image(size: object) -> None:
    with pytest.raises(ValueError, match='`model.backbone.probe_size` is'):
        MODELS.build(dict(
            type='vim_mm.ViMBackbone', trunk=vit(), probe_size=size))


INIT = dict(type='Constant', val=3., layer='Linear')


@pytest.mark.parametrize('init_cfg', [INIT, [INIT]])
@pytest.mark.parametrize('kind', [
    'ConvPass', 'BottleneckAdapter', 'LoRA', 'SideLadder'
])
def test_an_init_cfg_of_adapters_is_refused(kind, init_cfg) -> None:
    cfg = dict(type=kind, init_cfg=init_cfg)
    with pytest.raises(ValueError, match='`model.backbone.adapter.init_cfg` '
                       'would never be applied.*`model.backbone.init_cfg`'):
        build_backbone(new_module='n', adapter=cfg)
    build_backbone(new_module='n', adapter=dict(cfg, init_cfg=None))


@pytest.mark.parametrize('kind', [
    'EnsMoE', 'LinearMoE', 'RoutedMoE', 'ParameterMerge', 'FixedFusion',
    'FixedMerge'
])
def test_an_init_cfg_of_fusions_is_refused(kind) -> None:
    cfg = dict(type=kind, init_cfg=INIT)
    with pytest.raises(ValueError, match='`model.backbone.fusion.init_cfg` '
                       'would never'):
        build_backbone(new_module='n', fusion=cfg)
    backbone = build_backbone(new_module='n', fusion=dict(type=kind))
    before = backbone.fusion
    with pytest.raises(ValueError, match='`model.backbone.fusion.init_cfg`'):
        backbone.set_fusion(cfg)
    assert backbone.fusion is before


def test_in_a_neck_an_init_cfg_is_applied(tmp_path: Path) -> None:
    cfg = fusion_neck('seg', ['a', 'b'])
    trained = MODELS.build(dict(cfg, fusion=dict(type='EnsMoE')))
    fill(trained.fusion)
    torch.save(trained.fusion.state_dict(), tmp_path / 'gates.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'gates.pth'))
    neck = MODELS.build(
        dict(cfg, fusion=dict(type='EnsMoE', init_cfg=init_cfg)))
    assert not same(snapshot(neck.fusion), snapshot(trained.fusion))
    neck.init_weights()
    assert same(snapshot(neck.fusion), snapshot(trained.fusion))


def test_a_card_of_0_1_0_with_an_init_cfg_is_read(tmp_path: Path) -> None:
    """It was accepted then, and stands on the card."""
    trunk = save_trunk(tmp_path / 'trunk.pth')
    backbone = build_backbone(trunk)
    add_modules(backbone, 'old')
    backbone.bank._cfgs['old']['init_cfg'] = INIT
    save_module(backbone, 'old', tmp_path / 'zoo')
    assert Zoo(tmp_path / 'zoo').card('old').adapter['init_cfg'] == INIT
    again = build_backbone(trunk, zoo=str(tmp_path / 'zoo'), modules=['old'])
    assert again.bank.names == ['old']
