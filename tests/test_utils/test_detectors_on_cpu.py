# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Detectors of mmdet train a step and predict without compiled mmcv ops."""

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from mmengine.utils import get_installed_path

import vim_mm  # noqa: F401

SIZE = 64
SMALL = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        base_channels=8,
        norm_eval=True,
        out_indices=(0, 1, 2, 3)),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16))
TWO_STAGE = dict(
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes=2)))
MASKS = dict(
    roi_head=dict(
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(
            in_channels=16, conv_out_channels=16, num_convs=1,
            num_classes=2)))


def sample() -> DetDataSample:
    masks = np.zeros((2, SIZE, SIZE), np.uint8)
    masks[0, 8:40, 8:40] = masks[1, 30:60, 20:50] = 1
    return DetDataSample(
        metainfo=dict(
            img_shape=(SIZE, SIZE),
            ori_shape=(SIZE, SIZE),
            pad_shape=(SIZE, SIZE),
            batch_input_shape=(SIZE, SIZE),
            scale_factor=(1., 1.)),
        gt_instances=InstanceData(
            bboxes=torch.tensor([[8., 8, 40, 40], [20, 30, 50, 60]]),
            labels=torch.tensor([0, 1]),
            masks=BitmapMasks(masks, SIZE, SIZE)))


@pytest.fixture(autouse=True)
def mmdet_scope() -> None:
    init_default_scope('mmdet')


@pytest.mark.parametrize(('path', 'parts'), [
    ('faster-rcnn_r50_fpn.py', [TWO_STAGE]),
    ('mask-rcnn_r50_fpn.py', [TWO_STAGE, MASKS]),
    ('retinanet_r50_fpn.py', [
        dict(
            neck=dict(start_level=1),
            bbox_head=dict(
                num_classes=2, in_channels=16, feat_channels=16,
                stacked_convs=1))
    ]),
])
def test_train_a_step_and_predict(path: str, parts: list) -> None:
    torch.manual_seed(0)
    cfg = Config.fromfile(
        get_installed_path('mmdet') + f'/.mim/configs/_base_/models/{path}')
    for part in (SMALL, *parts):
        cfg.merge_from_dict(dict(model=part))
    model = MODELS.build(cfg.model)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
    data = dict(
        inputs=[torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8)],
        data_samples=[sample()])
    before = {k: v.clone() for k, v in model.named_parameters()}
    losses = model.train_step(data, wrapper)
    assert all(torch.isfinite(v).all() for v in losses.values())
    # every trainable stage has learned from the losses
    for stage in ('backbone', 'neck') + (('rpn_head', 'roi_head') if 'rcnn'
                                         in path else ('bbox_head', )):
        assert any(not torch.equal(v, before[k])
                   for k, v in model.named_parameters()
                   if k.startswith(stage)), stage

    model.eval()
    result = model.test_step(data)[0].pred_instances
    assert len(result) > 0
    assert result.bboxes.min() >= 0 and result.bboxes.max() <= SIZE
    if 'mask' in path:
        assert result.masks.shape[1:] == (SIZE, SIZE)
