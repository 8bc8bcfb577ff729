# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Digits on photographs, ten classes, alone: a dense ViT-S/14, fine-tuned.

    python tools/train.py configs/mtht/demo_single/digits_cls.py

An ordinary config of one task, of which ../demo_cls-det-seg.py reads data,
head and metric; not part of the demo. All values are ours.
Expected result: top-1 of 80.0 on 200 validation images (one seed, commit
3b85072), in 813 s of one CPU core beside other work.
"""
_base_ = [
    '../../_base_/models/demo_cls.py',
    '../../_base_/datasets/demo/digits_cls.py',
    '../../_base_/schedules/mtht_demo.py',
]

trunk = _base_.trunk
trunk.update(out_indices=(5, 8, 11), out_type='featmap', final_norm=True)
model = dict(
    backbone=dict(_delete_=True, **trunk),
    neck=dict(num_extra_tokens=0))

# to save minutes: the first of the 2400 images
train_dataloader = dict(dataset=dict(indices=1000))
custom_hooks = [dict(type='vim_mm.WarmHeadHook', epochs=10)]
