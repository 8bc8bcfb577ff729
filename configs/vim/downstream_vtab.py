# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""VTAB-1k: a task of 1,000 images, by fused modules.

Command, for one of the 19 tasks:

    VTAB_TASK=svhn python tools/train.py configs/vim/downstream_vtab.py

and, once, on the test images, with the same variable:

    VTAB_TASK=svhn python tools/test.py configs/vim/downstream_vtab.py \\
        work_dirs/downstream_vtab/svhn/epoch_100.pth

Needs the modules below in ``work_dirs/zoo``: the midstream configs of this
folder leave them there. Whether images of a midstream set are also in a task
of VTAB was not examined. Expected result: not measured at this scale, and no
number of the paper's is available. Hardware, an estimate and not measured
(README.md of this folder says how it is made): 3 minutes a task on one GPU, an
hour for all; the test sets of up to 74,000 images come on top.

From the paper (ViM, arXiv 2303.06911, and its released code): trunk and
modules stay frozen; learned are one gate per module, layer and branch
(Ens-MoE: a softmax over learned logits) and the head, a linear layer on the
class token; squashed images of 224 x 224 with ImageNet's statistics.

Ours, or borrowed from Convpass on VTAB-1k where the paper is silent: bicubic
resizing, no augmentation, the schedule (all borrowed; drop path and what
Convpass chooses per task are left out), gates that start from
each module's score and a head that is warmed on cached features, CLIP's
projection 768 -> 512 left out (it is linear, and so is the head). No image
of the test set is used for a choice: there is no validation, and the last
checkpoint is the one to test. To tune something first, train on 800 images and
evaluate on 200:

    --cfg-options train_dataloader.dataset.ann_file=train800.txt \\
        test_dataloader.dataset.ann_file=val200.txt

Names of the tasks, class counts and the layout of the data:
``configs/_base_/datasets/vtab1k.py``. Data elsewhere: override
``train_dataloader.dataset.data_root`` and
``test_dataloader.dataset.data_root``.
"""
_base_ = [
    '../_base_/models/vim_cls.py',
    '../_base_/datasets/vtab1k.py',
    '../_base_/schedules/vim_vtab.py',
    '../_base_/fusion_hooks.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        zoo='work_dirs/zoo',
        modules=[
            'imagenet21k', 'imagenet1k', 'inat2021', 'places365', 'objects365',
            'coco', 'coco-stuff', 'ade20k'
        ],
        fusion=dict(type='vim_mm.EnsMoE', tasks=[_base_.task])),
    head=dict(num_classes=_base_.num_classes))

work_dir = f'work_dirs/downstream_vtab/{_base_.task}'
