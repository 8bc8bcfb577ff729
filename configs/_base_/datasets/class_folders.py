# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Images in a folder per class, at mmpretrain's ImageNet crops. A child names
# the root and the folders of both splits.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs32_pil_bicubic.py'

train_dataloader = dict(
    batch_size=128,
    dataset=dict(
        _delete_=True,
        type='mmpretrain.CustomDataset',
        data_root='',
        data_prefix='train',
        pipeline=_base_.train_pipeline))
val_dataloader = dict(
    batch_size=128,
    dataset=dict(
        _delete_=True,
        type='mmpretrain.CustomDataset',
        data_root='',
        data_prefix='val',
        pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
