# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# ImageNet-21k-P of the Fall 2011 release: 11,221 classes with at least 500
# pictures, 11.8 M to learn from, 50 a class to validate. A folder per class,
# as the processing scripts of ImageNet-21k-P leave them.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs32_pil_bicubic.py'

data_root = 'data/imagenet21k_p'
train_dataloader = dict(
    batch_size=128,
    dataset=dict(
        _delete_=True,
        type='mmpretrain.CustomDataset',
        data_root=data_root,
        data_prefix='imagenet21k_train',
        pipeline=_base_.train_pipeline))
val_dataloader = dict(
    batch_size=128,
    dataset=dict(
        _delete_=True,
        type='mmpretrain.CustomDataset',
        data_root=data_root,
        data_prefix='imagenet21k_val',
        pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
