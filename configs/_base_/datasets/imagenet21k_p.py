# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# ImageNet-21k-P of the Fall 2011 release: 11,221 classes with at least 500
# images, 11.8 M to learn from, 50 a class to validate. A folder per class,
# as the processing scripts of ImageNet-21k-P leave them.
_base_ = './class_folders.py'

data_root = 'data/imagenet21k_p'
train_dataloader = dict(
    dataset=dict(data_root=data_root, data_prefix='imagenet21k_train'))
val_dataloader = dict(
    dataset=dict(data_root=data_root, data_prefix='imagenet21k_val'))
test_dataloader = val_dataloader
