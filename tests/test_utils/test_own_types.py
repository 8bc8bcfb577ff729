# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a config inherits, or misspells, is named in one sentence."""

from pathlib import Path
from typing import Any, Optional

import pytest
from mmengine.config import Config
from mmengine.registry import (HOOKS, LOOPS, METRICS, Registry,
                               init_default_scope)

from _tiny import SCOPES, fusion_neck, model_cfg, vit
from vim_mm.registry import MODELS

BACKBONE = dict(type='vim_mm.ViMBackbone', trunk=vit(), probe_size=56)
#: Base configs of the three libraries, and what their backbones leave over.
BASES = [
    ('mmdet', 'retinanet_r50_fpn', 'depth, frozen_stages, norm_cfg'),
    ('mmdet', 'faster-rcnn_r50_fpn', 'depth, frozen_stages'),
    ('mmdet', 'mask-rcnn_r50_fpn', 'depth'),
    ('mmdet', 'ssd300', 'ceil_mode, depth'),
    ('mmseg', 'fcn_r50-d8', 'contract_dilation, depth, dilations'),
    ('mmseg', 'upernet_swin', 'act_cfg, attn_drop_rate, depths'),
    ('mmseg', 'segmenter_vit-b16_mask', 'attn_drop_rate'),
    ('mmpretrain', 'resnet50', 'depth, num_stages, out_indices, style'),
    ('mmpretrain', 'swin_transformer/base_224', 'arch, drop_path_rate'),
    ('mmpretrain', 'vit-base-p16', 'arch, drop_rate'),
]


def build(folder: Path, base: str, name: str, backbone: dict, **model) -> None:
    path = folder / 'child.py'
    model = dict(backbone=backbone, **model)
    path.write_text(f"_base_ = '{base}::_base_/models/{name}.py'\n"
                    f'model = {model!r}\n')
    init_default_scope(base)
    MODELS.build(Config.fromfile(path).model)


@pytest.mark.parametrize(('base', 'name', 'left'), BASES)
def test_settings_of_the_backbone_before(base: str, name: str, left: str,
                                         tmp_path: Path) -> None:
    with pytest.raises(
            ValueError,
            match=f'ViMBackbone takes no {left}.*it takes trunk, .*_delete_'):
        build(tmp_path, base, name, BACKBONE)


@pytest.mark.parametrize(('base', 'name', 'left'), BASES)
def test_a_backbone_without_its_type(base: str, name: str, left: str,
                                     tmp_path: Path) -> None:
    backbone = dict(trunk=vit(), new_module='n')
    with pytest.raises(ValueError, match="set its `type`, and `_delete_=True"):
        build(tmp_path, base, name, backbone)


@pytest.mark.parametrize('name', ['fcn_r50-d8', 'upernet_r50', 'pspnet_r50-d8',
                                  'ocrnet_hr18'])
def test_weights_that_a_segmentor_hands_on(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='no pretrained; .*'
                       '`model.pretrained=None` and .*`trunk.init_cfg`'):
        build(tmp_path, 'mmseg', name, dict(BACKBONE, _delete_=True))


@pytest.mark.parametrize(('settings', 'sentence'), [
    (dict(new_modul='n'), 'no new_modul; perhaps new_module is meant; it'),
    (dict(prob_size=8, zooo='x'), 'perhaps probe_size, zoo is meant'),
    (dict(depth=50), 'ViMBackbone takes no depth; it takes'),
    (dict(style='pytorch'), 'ViMBackbone takes no style; it takes'),
])
def test_typos_of_a_backbone(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MODELS.build(dict(BACKBONE, **settings))


@pytest.mark.parametrize('kind', SCOPES)
def test_in_every_library(kind: str) -> None:
    """Models build their parts in registries and scopes of their own."""
    init_default_scope(SCOPES[kind])
    lacking = dict(new_module='n')
    with pytest.raises(ValueError, match='ViMBackbone needs `trunk`'):
        MODELS.build(model_cfg(kind, lacking, fusion_neck(kind)))
    cfg = model_cfg(kind, BACKBONE, fusion_neck(kind))
    with pytest.raises(ValueError, match='FusionNeck takes no scale; perhaps '
                       'scales is meant'):
        MODELS.build(dict(cfg, neck=dict(cfg.neck, scale=[1])))
    with pytest.raises(ValueError, match="write 'vim_mm.ViMBackbone'"):
        MODELS.build(
            dict(cfg, backbone=dict(BACKBONE, type='ViMBackbone')))
    with pytest.raises(ValueError, match="write 'vim_mm.ViMFusionNeck'"):
        MODELS.build(dict(cfg, neck=dict(cfg.neck, type='VimFusionNeck')))
    with pytest.raises(KeyError, match='NoSuchNeck'):
        MODELS.build(dict(cfg, neck=dict(cfg.neck, type='NoSuchNeck')))


@pytest.mark.parametrize(('cfg', 'sentence'), [
    (dict(type='vim_mm.GateLogHook', intervall=5), 'interval is meant'),
    (dict(type='vim_mm.ModuleToZooHook', zoo='z'), 'needs `dataset`'),
    (dict(type='vim_mm.WarmHeadHook', epoch=5), 'epochs is meant'),
    (dict(type='vim_mm.NormEvalHook', epochs=5), 'no epochs; .*none at all'),
    (dict(type='vim_mm.SummaryHook', interval=5), 'takes no interval'),
    (dict(type='vim_mm.WarmHeadHok'), "write 'vim_mm.WarmHeadHook'"),
    (dict(type='GateLogHook'), "write 'vim_mm.GateLogHook'"),
])
@pytest.mark.parametrize('scope', ['mmdet', 'mmengine', 'vim_mm'])
def test_of_hooks(cfg: dict, sentence: str, scope: Optional[str]) -> None:
    init_default_scope(scope)
    if (cfg['type'], scope) == ('GateLogHook', 'vim_mm'):
        assert HOOKS.build(cfg).interval == 50
        return
    with pytest.raises(ValueError, match=sentence):
        HOOKS.build(cfg)


@pytest.mark.parametrize(('cfg', 'sentence'), [
    (dict(num_expert=2), 'to_moe takes no num_expert; perhaps num_experts'),
    (dict(num_experts=2), 'to_moe needs `k`, which its config lacks'),
])
def test_of_functions_that_build_trunks(cfg: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MODELS.build(dict(cfg, type='vim_mm.to_moe', trunk=vit()))


def test_of_loops() -> None:
    with pytest.raises(ValueError, match='max_iters'):
        LOOPS.build(
            dict(type='vim_mm.MultiTaskTrainLoop', max_iter=5),
            default_args=dict(runner=None, dataloader={}))


@pytest.mark.parametrize(('registry', 'cfg', 'said'), [
    (MODELS, dict(BACKBONE, tune_modules='yes'),
     "`tune_modules` of ViMBackbone is the text 'yes', which counts as True"),
    (MODELS, dict(type='mmpretrain.ClsDataPreprocessor', to_rgb='False'),
     "`to_rgb` of ClsDataPreprocessor is the text 'False'"),
    (HOOKS, dict(type='EMAHook', strict_load='no'), '`strict_load` of EMAH'),
    (MODELS, dict(type='mmseg.FCNHead', in_channels=4, channels=4,
                  num_classes=2, align_corners='off'), '`align_corners` of F'),
    (MODELS, dict(type='mmdet.FPN', in_channels=[4], out_channels=4,
                  num_outs=2, add_extra_convs='on_input'), None),
    (HOOKS, dict(type='EMAHook', ema_type='StochasticWeightAverage'), None),
])
def test_text_for_a_switch(registry: Any, cfg: dict,
                           said: Optional[str]) -> None:
    if said is None:
        registry.build(cfg)
        return
    with pytest.raises(ValueError, match=said):
        registry.build(cfg)


@pytest.mark.parametrize(('registry', 'cfg', 'words'), [
    (METRICS, dict(type='mmseg.IoUMetric', ignor_index=0),
     'IoUMetric takes no ignor_index; perhaps ignore_index is meant'),
    (METRICS, dict(type='mmseg.IoUMetric', iou_metric=['mIoU']),
     'perhaps iou_metrics is meant'),
    (METRICS, dict(type='mmseg.IoUMetric', ignore_index=0), None),
    (METRICS, dict(type='mmseg.IoUMetric', own=0), None),
])
def test_of_what_takes_any_setting(registry: Registry, cfg: dict,
                                   words: Optional[str]) -> None:
    """And passes over those that it does not know."""
    if words is None:
        registry.build(cfg)
        return
    with pytest.raises(ValueError, match=words):
        registry.build(cfg)


@pytest.mark.parametrize('scope', ['vim_mm', 'mmengine', 'mmseg', 'mmdet'])
def test_what_a_library_takes_by_default(scope: str) -> None:
    """Its own types, whatever the scope of the run is."""
    init_default_scope(scope)
    head = MODELS.build(dict(
        type='mmseg.FCNHead', in_channels=4, channels=4, num_classes=2,
        num_convs=1))
    assert head.loss_decode.__module__.startswith(
        'mmdet' if scope == 'mmdet' else 'mmseg')


@pytest.mark.parametrize('scope', ['vim_mm', 'mmengine'])
def test_a_type_that_nobody_has(scope: str) -> None:
    init_default_scope(scope)
    with pytest.raises(KeyError, match="no type 'NoSuchLoss' among the model"):
        MODELS.build(dict(
            type='mmseg.FCNHead', in_channels=4, channels=4, num_classes=2,
            loss_decode=dict(type='NoSuchLoss')))
