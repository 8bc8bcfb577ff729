# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Students and teachers of every kind, small enough for a test."""

from pathlib import Path
from typing import Any, Optional

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope

from _tiny import DIMS, SCOPES, SIZE, fill, model_cfg, vit
from vim_mm.registry import MODELS

#: pixels as other networks read them: RGB, and CLIP's numbers
CLIP = dict(
    mean=[122.771, 116.746, 104.094], std=[68.501, 66.632, 70.323])
TO_RGB = dict(cls='to_rgb', det='bgr_to_rgb', seg='bgr_to_rgb')


def resnet() -> dict:
    return dict(
        type='mmdet.ResNet',
        depth=18,
        base_channels=8,
        stem_channels=8,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2, ))


def network(kind: str, trunk: str = 'resnet', **kwargs: Any) -> ConfigDict:
    """A plain model of one level; its ResNet's map is 32 wide at stride 16."""
    cfg = model_cfg(kind, {})
    cfg.backbone = vit(out_indices=[2]) if trunk == 'vit' else resnet()
    if kind == 'cls':
        cfg.neck = dict(type='mmpretrain.GlobalAveragePooling')
    elif kind == 'det':
        cfg.neck = dict(
            type='mmdet.ChannelMapper',
            in_channels=[DIMS],
            out_channels=DIMS,
            norm_cfg=None)
        cfg.bbox_head.strides = [PATCHES[trunk]]
    cfg.update(kwargs)
    return cfg


PATCHES = dict(vit=14, resnet=16)


def retinanet(trunk: str = 'resnet', **kwargs: Any) -> ConfigDict:
    cfg = network('det', trunk, type='mmdet.RetinaNet', **kwargs)
    cfg.bbox_head = dict(
        type='mmdet.RetinaHead',
        num_classes=1,
        in_channels=DIMS,
        feat_channels=16,
        stacked_convs=1,
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=2,
            scales_per_octave=1,
            ratios=[0.5, 1.0],
            strides=[PATCHES[trunk]]))
    cfg.train_cfg = dict(
        assigner=dict(
            type='MaxIoUAssigner',
            pos_iou_thr=0.5,
            neg_iou_thr=0.4,
            min_pos_iou=0),
        sampler=dict(type='PseudoSampler'),
        allowed_border=-1,
        pos_weight=-1,
        debug=False)
    return cfg


def in_own_pixels(kind: str, cfg: ConfigDict) -> ConfigDict:
    """The model as one that reads images as CLIP does."""
    cfg.data_preprocessor.update(CLIP, **{TO_RGB[kind]: True})
    return cfg


def teacher(folder: Path, kind: str, cfg: Optional[dict] = None) -> dict:
    """A teacher with weights in a file."""
    cfg = cfg or in_own_pixels(kind, network(kind, 'vit'))
    path = folder / 'teacher.pth'
    with DefaultScope.overwrite_default_scope(SCOPES[kind]):
        model = ROOT.build(cfg)
    fill(model, 0.1)
    torch.save(dict(state_dict=model.state_dict()), path)
    return dict(model=cfg, checkpoint=str(path))


KL = dict(type='vim_mm.LogitsKL', tau=2.)
FEATURES = dict(type='vim_mm.CosineSmoothL1')
CKA = dict(type='vim_mm.LinearCKA')
CRITERIA = {
    ('logits', 'logits'): KL,
    ('backbone[0]', 'backbone[0]'): [FEATURES, CKA]
}


def distiller_cfg(folder: Path,
                  kind: str,
                  criteria: Optional[dict] = None,
                  **kwargs: Any) -> ConfigDict:
    cfg = dict(
        type='vim_mm.Distiller',
        student=network(kind),
        probe_size=SIZE,
        criteria=criteria or CRITERIA)
    cfg.update(kwargs)
    cfg.setdefault('teacher', None)
    cfg['teacher'] = cfg['teacher'] or teacher(folder, kind)
    return ConfigDict(cfg)


def build(folder: Path, kind: str, *args: Any, **kwargs: Any):
    with DefaultScope.overwrite_default_scope(SCOPES[kind]):
        return MODELS.build(distiller_cfg(folder, kind, *args, **kwargs))
