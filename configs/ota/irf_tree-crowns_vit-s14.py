# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""IRF: tree crowns from the air, a quarter of the tiles; ViT-S/14.

    python tools/train.py configs/ota/irf_tree-crowns_vit-s14.py

Boxes of the original images are those of the re-represented ones. Needs a
release: irf_clothing_efficientnet-lite0.py says how to make one. Not
measured.
"""
_base_ = [
    '../_base_/models/demo_det.py',
    '../_base_/datasets/demo/tree_crowns.py',
    '../_base_/schedules/irf_small.py',
]

train_set = _base_.train_dataloader.dataset
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        _delete_=True,
        type='vim_mm.FewShot',
        dataset=train_set,
        share=0.25,
        seed=0))

trunk = _base_.trunk
trunk.update(out_indices=(5, 8, 11), out_type='featmap', final_norm=True)
model = dict(backbone=dict(_delete_=True, **trunk))
