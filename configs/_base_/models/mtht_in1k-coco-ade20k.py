# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# ImageNet-1k, COCO boxes and ADE20K over one DaViT, from the ordinary config
# of each task; necks and heads take their channels from the backbone.
import importlib

_base_ = '../schedules/mtht_240k.py'

join_tasks = importlib.import_module('vim_mm.utils.join_tasks').join_tasks
parts = join_tasks(
    cls='{{fileDirname}}/../../mtht/single/davit-t_imagenet1k.py',
    det='{{fileDirname}}/../../mtht/single/davit-t_retinanet_coco.py',
    seg='{{fileDirname}}/../../mtht/single/davit-t_upernet_ade20k.py')

model = dict(
    type='vim_mm.MultiTaskModel',
    backbone=dict(type='vim_mm.MoEDaViT', arch='tiny'),
    tasks=parts.tasks,
    loss_weights=dict(cls=1., det=0.6, seg=0.2))

train_dataloader = parts.train_dataloader
val_dataloader = parts.val_dataloader
val_evaluator = parts.val_evaluator
test_dataloader = parts.test_dataloader
test_evaluator = parts.test_evaluator

del parts, join_tasks
