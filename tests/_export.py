# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Small models of all kinds, with configs that say how images reach them."""

from pathlib import Path
from typing import Any, Tuple

import cv2
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from torch import nn

from _tiny import NORMALISE, SCOPES, fill
from vim_mm.registry import MODELS

CLASSES = ('a', 'b', 'c')
PACK = dict(cls='PackInputs', det='PackDetInputs', seg='PackSegInputs')
DATASETS = dict(cls='CustomDataset', det='CocoDataset', seg='BaseSegDataset')
MOBILENET = dict(
    type='mmpretrain.MobileNetV2', widen_factor=0.25, out_indices=(2, 4, 7))
STRIDES = [8, 16, 32]
#: Of the detectors' heads.
ANCHORS = dict(
    type='mmdet.AnchorGenerator',
    octave_base_scale=4,
    scales_per_octave=2,
    ratios=[0.5, 1., 2.],
    strides=STRIDES)
SQUARES = dict(
    type='mmdet.AnchorGenerator',
    octave_base_scale=8,
    scales_per_octave=1,
    ratios=[1.],
    strides=STRIDES)
COMMON = dict(num_classes=3, in_channels=16, feat_channels=32)
SINGLE = dict(COMMON, stacked_convs=1)
HEADS = dict(
    retina=dict(
        type='mmdet.RetinaHead', anchor_generator=ANCHORS, **SINGLE),
    softmax=dict(
        type='mmdet.RetinaHead',
        anchor_generator=ANCHORS,
        loss_cls=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=False),
        **SINGLE),
    yolof_coder=dict(
        type='mmdet.RetinaHead',
        anchor_generator=dict(ANCHORS, center_offset=0.5),
        bbox_coder=dict(
            type='mmdet.DeltaXYWHBBoxCoder',
            target_means=[.1, .2, 0., .1],
            target_stds=[.5, .5, 2., 2.],
            add_ctr_clamp=True,
            ctr_clamp=4,
            clip_border=False),
        **SINGLE),
    atss=dict(
        type='mmdet.ATSSHead',
        anchor_generator=SQUARES,
        bbox_coder=dict(
            type='mmdet.DeltaXYWHBBoxCoder', target_stds=[.1, .1, .2, .2]),
        loss_centerness=dict(
            type='mmdet.CrossEntropyLoss', use_sigmoid=True),
        **SINGLE),
    fcos=dict(
        type='mmdet.FCOSHead',
        strides=STRIDES,
        regress_ranges=((-1, 64), (64, 128), (128, 1e8)),
        norm_on_bbox=True,
        centerness_on_reg=True,
        norm_cfg=None,
        **SINGLE),
    rtmdet=dict(
        type='mmdet.RTMDetSepBNHead',
        anchor_generator=dict(
            type='mmdet.MlvlPointGenerator', offset=0, strides=STRIDES),
        bbox_coder=dict(type='mmdet.DistancePointBBoxCoder'),
        norm_cfg=dict(type='BN'),
        exp_on_reg=True,
        pred_kernel_size=1,
        **SINGLE),
    ssd=dict(
        type='mmdet.SSDHead',
        in_channels=[16] * 3,
        num_classes=3,
        anchor_generator=dict(
            type='mmdet.SSDAnchorGenerator',
            scale_major=False,
            input_size=96,
            basesize_ratio_range=(0.2, 0.9),
            strides=STRIDES,
            ratios=[[2], [2, 3], [2]]),
        bbox_coder=dict(
            type='mmdet.DeltaXYWHBBoxCoder', target_stds=[.1, .1, .2, .2])))
TEST_CFG = dict(
    score_thr=0.05,
    nms_pre=100,
    min_bbox_size=0,
    nms=dict(type='nms', iou_threshold=0.5),
    max_per_img=30)


def whole_config(kind: str, model: dict, size: int = 96) -> Config:
    """A config of a run around a model's config."""
    scope, scale = SCOPES[kind], (size + 32 * (kind != 'cls'), size)
    return Config(
        dict(
            default_scope=scope,
            model=model,
            test_dataloader=dict(
                dataset=dict(
                    type=f'{scope}.{DATASETS[kind]}',
                    metainfo=dict(classes=CLASSES),
                    pipeline=[
                        dict(type='LoadImageFromFile'),
                        dict(
                            type=f'{scope}.Resize',
                            scale=scale,
                            keep_ratio=kind == 'det'),
                        dict(type=f'{scope}.LoadAnnotations'),
                        dict(type=f'{scope}.{PACK[kind]}')
                    ][:4]))))


def classifier(backbone: dict = MOBILENET, channels: int = 1280,
               **head: Any) -> ConfigDict:
    return ConfigDict(
        type='mmpretrain.ImageClassifier',
        data_preprocessor=dict(
            type='mmpretrain.ClsDataPreprocessor', to_rgb=True, **NORMALISE),
        backbone=backbone,
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(
            dict(
                type='mmpretrain.LinearClsHead',
                num_classes=3,
                in_channels=channels), **head))


def segmentor(num_classes: int = 3, **head: Any) -> ConfigDict:
    return ConfigDict(
        type='mmseg.EncoderDecoder',
        data_preprocessor=dict(
            type='mmseg.SegDataPreProcessor',
            bgr_to_rgb=True,
            size=(96, 128),
            test_cfg=dict(size_divisor=32),
            **NORMALISE),
        backbone=MOBILENET,
        decode_head=dict(
            dict(
                type='mmseg.FCNHead',
                in_channels=1280,
                in_index=2,
                channels=8,
                num_convs=1,
                concat_input=False,
                num_classes=num_classes,
                norm_cfg=dict(type='BN')), **head),
        test_cfg=dict(mode='whole'))


def detector(head: str = 'retina', **test_cfg: Any) -> ConfigDict:
    return ConfigDict(
        type='mmdet.SingleStageDetector',
        data_preprocessor=dict(
            type='mmdet.DetDataPreprocessor',
            bgr_to_rgb=True,
            pad_size_divisor=32,
            **NORMALISE),
        backbone=MOBILENET,
        neck=dict(
            type='mmdet.FPN',
            in_channels=[8, 24, 1280],
            out_channels=16,
            num_outs=3),
        bbox_head=HEADS[head],
        test_cfg=dict(TEST_CFG, **test_cfg))


def build(kind: str, model: dict, size: int = 96,
          std: float = 0.05) -> Tuple[BaseModel, Config]:
    """A model in eval mode whose head is not at its start, and its config."""
    cfg = whole_config(kind, model, size)
    with DefaultScope.overwrite_default_scope(SCOPES[kind]):
        torch.manual_seed(0)
        built = MODELS.build(cfg.model)
        built.init_weights()
    for name in ('head', 'bbox_head', 'decode_head'):
        if hasattr(built, name):
            fill(getattr(built, name), std)
    spread(built, size)
    return built.eval().requires_grad_(False), cfg


@torch.no_grad()
def spread(model: BaseModel, size: int) -> None:
    """Let features differ: those of a network at its start hardly do."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.
    model.train()
    if not hasattr(model, 'roi_head'):
        model(torch.randn(4, 3, size, size), mode='tensor')


def write_images(folder: Path) -> list:
    """Photographs of three shapes, as files."""
    draw = np.random.RandomState(0)
    paths = []
    for index, shape in enumerate(((60, 90), (90, 60), (100, 100))):
        image = cv2.resize(
            draw.randint(0, 255, (9, 12, 3), np.uint8), shape[::-1])
        path = folder / f'{index}.png'
        cv2.imwrite(str(path), image)
        paths.append(str(path))
    return paths
