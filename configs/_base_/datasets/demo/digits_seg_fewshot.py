# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# 200 images by other writers and on other photographs than midstream.
_base_ = './digits_seg.py'

train_dataloader = dict(
    dataset=dict(
        ann_file='fewshot/seg_200.txt',
        data_prefix=dict(
            img_path='fewshot/img', seg_map_path='fewshot/ann')))
val_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path='test/img', seg_map_path='test/ann')))
test_dataloader = val_dataloader
