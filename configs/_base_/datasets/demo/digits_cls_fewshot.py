# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# 20 images per class by other writers and on other photographs than
# midstream; `fewshot/cls_5.txt` lists 5 a class.
_base_ = './digits_cls.py'

train_dataloader = dict(
    dataset=dict(
        ann_file='fewshot/cls_20.txt', data_prefix='fewshot/img'))
val_dataloader = dict(
    dataset=dict(ann_file='test/cls.txt', data_prefix='test/img'))
test_dataloader = val_dataloader
