# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Faster R-CNN on CLIP ViT-B/16 with modules: raw maps of blocks 3, 5, 7 and 11
# (0-based), pyramid, FPN. ImageNet's mean and deviation, as in ViM's release.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    '../trunks/clip_vit-b16.py',
    './vim_det_neck.py',
]

model = dict(
    backbone=dict(
        _delete_=True, type='vim_mm.ViMBackbone', trunk=_base_.trunk),
    neck=dict(_delete_=True, **_base_.det_neck))
