# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Tree crowns from the air, alone: a dense ViT-S/14, fine-tuned.

    python tools/train.py configs/mtht/demo_single/tree-crowns_det.py

An ordinary config of one task, of which ../demo_cls-det-seg.py reads data,
head and metric. Expect, on two CPU cores, some minutes; not part of the demo
and not measured by itself. All values are ours.
"""
_base_ = [
    '../../_base_/models/demo_det.py',
    '../../_base_/datasets/demo/tree_crowns.py',
    '../../_base_/schedules/mtht_demo.py',
]

trunk = _base_.trunk
trunk.update(out_indices=(5, 8, 11), out_type='featmap', final_norm=True)
model = dict(backbone=dict(_delete_=True, **trunk))

train_dataloader = dict(batch_size=4)
custom_hooks = [dict(type='vim_mm.WarmHeadHook', epochs=6)]
