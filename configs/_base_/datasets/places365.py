# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Places365-Standard: 365 scenes, 1.80 M pictures to learn from and 36,500 to
# validate. A folder per scene, as in the archive of small pictures with
# folders (`places365standard_easyformat`).
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs32_pil_bicubic.py'

data_root = 'data/places365_standard'
train_dataloader = dict(
    batch_size=128,
    dataset=dict(
        _delete_=True,
        type='mmpretrain.CustomDataset',
        data_root=data_root,
        data_prefix='train',
        pipeline=_base_.train_pipeline))
val_dataloader = dict(
    batch_size=128,
    dataset=dict(
        _delete_=True,
        type='mmpretrain.CustomDataset',
        data_root=data_root,
        data_prefix='val',
        pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
