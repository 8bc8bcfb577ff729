# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""DIGG: tree crowns with boxes, one image of each of 20 guides.

    python tools/generate.py configs/ota/generate_tree-crowns_det.py \\
        --teacher work_dirs/tree-crowns_det/epoch_10.pth \\
        --out work_dirs/ota/tree-crowns_generated

The teacher is that of ../mtht/real_single/tree-crowns_det.py, a ViT-S/14
under an anchor-free head. Boxes are mirrored with their images; they cannot
be rolled, so there is no jitter. All of it is ours.
"""
_base_ = '../mtht/real_single/tree-crowns_det.py'

generate = dict(
    dataset=_base_.train_dataloader.dataset,
    limit=20,
    batch_size=4,
    generator=dict(
        type='vim_mm.GuidedGenerator',
        iterations=60,
        lr=0.005,
        noise=0.05,
        motion=dict(flip=True),
        layers=r'backbone\.layers\.(5|8)'))
