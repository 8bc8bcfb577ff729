# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# 64 images of 168 px with one to four digits, by other writers and on
# other photographs than midstream.
_base_ = './digits_det.py'

train_dataloader = dict(
    dataset=dict(
        ann_file='det_fewshot/coco.json',
        data_prefix=dict(img='det_fewshot/img/')))
val_dataloader = dict(
    dataset=dict(
        ann_file='det_test/coco.json',
        data_prefix=dict(img='det_test/img/')))
test_dataloader = val_dataloader

val_evaluator = dict(ann_file=_base_.data_root + 'det_test/coco.json')
test_evaluator = val_evaluator
