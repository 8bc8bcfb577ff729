# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# iNaturalist 2021: 10,000 species, 2.69 M images to learn from and 0.1 M to
# validate. A folder per species, as the archives `train` and `val` hold them.
_base_ = './class_folders.py'

data_root = 'data/inat2021'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
