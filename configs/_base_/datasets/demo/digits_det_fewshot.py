# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# 64 pictures of 168 px with one to four digits, by other writers and on
# other photographs than midstream. One class: where, not which.
_base_ = './digits_det.py'

metainfo = dict(classes=('digit', ), palette=[(230, 25, 75)])
train_dataloader = dict(
    dataset=dict(
        metainfo=metainfo,
        ann_file='det_fewshot/boxes.json',
        data_prefix=dict(img='det_fewshot/img/')))
val_dataloader = dict(
    dataset=dict(
        metainfo=metainfo,
        ann_file='det_test/boxes.json',
        data_prefix=dict(img='det_test/img/')))
test_dataloader = val_dataloader

val_evaluator = dict(ann_file=_base_.data_root + 'det_test/boxes.json')
test_evaluator = val_evaluator
