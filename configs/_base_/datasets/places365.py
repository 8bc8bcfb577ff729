# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Places365-Standard: 365 scenes, 1.80 M images to learn from and 36,500 to
# validate. A folder per scene, as in the archive of small images with
# folders (`places365standard_easyformat`).
_base_ = './class_folders.py'

data_root = 'data/places365_standard'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
