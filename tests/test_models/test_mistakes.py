# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What users of PEFT and mmdet get wrong first is answered in a sentence."""

import pytest

from _tiny import build_backbone, occupy
from vim_mm.models.adapters import build_adapter
from vim_mm.models.fusion import build_fusion


@pytest.mark.parametrize(('cfg', 'sentence'), [
    (dict(type='LoRA', r=8, lora_alpha=16),
     'LoRA takes no lora_alpha, r; it takes rank, alpha, drop_rate'),
    (dict(type='PluginNeck', hidden_dim=8),
     'PluginNeck takes no hidden_dim; it takes hidden_dims'),
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
     'LinearMoE takes no top_k; .*ranks, tasks, learn, init_cfg .*_delete_'),
    (dict(type='EnsMoE', top_k=1.5), '`top_k` is 1.5'),
    (dict(type='LinearMoE', ranks=1.), '`ranks` is 1.0'),
    (dict(type='EnsMoE', tasks='mine'), r"the name 'mine'; .*\['mine'\]"),
    (dict(type='EnsMoE', tasks=dict(x='abc')), '`fusion.tasks.x` is the name'),
    (dict(type='EnsMoE', tasks=[]), '`fusion.tasks` is empty'),
    (dict(type='EnsMoE', tasks=['x', 'x']), "a task 'x' already"),
    (dict(type='FixedFusion', weights=[.5, .5]), r'such as dict\(a=1.\)'),
    (dict(type='FixedFusion', weights=dict(a=float('nan'))), 'finite'),
])
def test_of_fusions(cfg: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_fusion(cfg, occupy('ab', 4))


@pytest.mark.parametrize(('settings', 'sentence'), [
    (dict(modules='trees', zoo='zoo'), '`model.backbone.modules` is the name'),
    (dict(adapter='ConvPass'), '`model.backbone.adapter` is'),
    (dict(trunk=dict(type='mmpretrain.ViTransformer')),
     'ViTransformer cannot be built .*not in the .*`model.backbone.trunk`'),
    (dict(trunk=dict(type='mmpretrain.VisionTransformer', arch='x')),
     'VisionTransformer cannot be built .*x.*`model.backbone.trunk`'),
    (dict(trunk=dict(type='mmpretrain.VisionTransformer', size=8)),
     'VisionTransformer cannot be built .*size'),
    (dict(slots=['attn', 'ffn']), r"\['attn', 'ffn'\] is no regular"),
])
def test_of_backbones(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_backbone(**settings)
