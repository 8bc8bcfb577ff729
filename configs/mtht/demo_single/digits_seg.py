# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Digits on photographs, masks, alone: a dense ViT-S/14, fine-tuned.

    python tools/train.py configs/mtht/demo_single/digits_seg.py

An ordinary config of one task, of which ../demo_cls-det-seg.py reads data,
head and metric. Expect, on two CPU cores, some minutes; not part of the demo
and not measured by itself. All values are ours.
"""
_base_ = [
    '../../_base_/models/demo_seg.py',
    '../../_base_/datasets/demo/digits_seg.py',
    '../../_base_/schedules/mtht_demo.py',
]

trunk = _base_.trunk
trunk.update(out_indices=(5, 8, 11), out_type='featmap', final_norm=True)
model = dict(backbone=dict(_delete_=True, **trunk))

# to save minutes: the first of the 1600 images
train_dataloader = dict(dataset=dict(indices=1000))
custom_hooks = [dict(type='vim_mm.WarmHeadHook', epochs=10)]
