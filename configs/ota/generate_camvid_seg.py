# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""DIGG: driving scenes with label maps, one image of each of 36 guides.

    python tools/generate.py configs/ota/generate_camvid_seg.py \\
        --teacher work_dirs/camvid_seg/epoch_10.pth \\
        --out work_dirs/ota/camvid_generated

The teacher is that of ../mtht/real_single/camvid_seg.py, a ViT-S/14 under a
dense head. Label maps are moved along with their images. All of it is ours.
"""
_base_ = '../mtht/real_single/camvid_seg.py'

generate = dict(
    dataset=dict(
        type='vim_mm.FewShot',
        dataset=_base_.train_dataloader.dataset,
        share=0.1,
        seed=0),
    batch_size=8,
    generator=dict(
        type='vim_mm.GuidedGenerator',
        iterations=60,
        lr=0.005,
        noise=0.05,
        motion=dict(jitter=4, flip=True),
        layers=r'backbone\.layers\.(5|8)'))
