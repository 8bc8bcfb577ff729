# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""CIFAR-10, the new task of the evidence: ViT-S/14 fine-tuned as a whole.

    python tools/train.py configs/mtht/real_single/cifar10_cls.py

Expected result: not measured with this schedule; some of its images are in
docs/evidence/README.md. benchmarks/mtht_evidence.py reads model, data and
metric from here.
"""
_base_ = [
    '../../_base_/models/demo_cls.py',
    '../../_base_/datasets/real/cifar10.py',
    '../../_base_/schedules/mtht_demo.py',
]

trunk = _base_.trunk
trunk.update(out_indices=(5, 8, 11), out_type='featmap', final_norm=True)
model = dict(
    backbone=dict(_delete_=True, **trunk),
    neck=dict(num_extra_tokens=0))

custom_hooks = [dict(type='vim_mm.WarmHeadHook', epochs=10)]
