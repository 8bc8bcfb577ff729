# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# iNaturalist 2021: 10,000 species, 2.69 M pictures to learn from and 0.1 M to
# validate. A folder per species, as the archives `train` and `val` hold them.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs32_pil_bicubic.py'

data_root = 'data/inat2021'
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
