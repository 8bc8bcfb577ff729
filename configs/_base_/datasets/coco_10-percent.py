# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# A tenth of COCO's training images, drawn by mmdet's split for
# semi-supervised learning (fold 1: the seed); validation on all of val2017.
# mmdet draws with repetition, so a tenth is rather 9.5 % of the images.
_base_ = 'mmdet::_base_/datasets/coco_detection.py'

train_dataloader = dict(
    dataset=dict(ann_file='semi_anns/instances_train2017.1@10.json'))
