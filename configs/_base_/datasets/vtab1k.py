# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# VTAB-1k as the codebases of parameter-efficient transfer learning pass it on:
#
#     data/vtab-1k/<task>/images/...
#     data/vtab-1k/<task>/{train800,val200,train800val200,test}.txt
#
# Each line of a list is the path of an image below the folder of its task, a
# space and the label. Learn from `train800val200.txt`, test once on
# `test.txt`. The environment variable VTAB_TASK names the task. Class counts
# are those of the label lists in tensorflow-datasets 4.9.10 (natural and
# specialised tasks) and of the benchmark's bins (structured tasks); the lists
# themselves were not at hand.
# No default: all tasks look alike, and some have as many classes.
task = '{{$VTAB_TASK:unset}}'
class_counts = dict(
    # natural
    cifar=100,
    caltech101=102,
    dtd=47,
    oxford_flowers102=102,
    oxford_iiit_pet=37,
    svhn=10,
    sun397=397,
    # specialised
    patch_camelyon=2,
    eurosat=10,
    resisc45=45,
    diabetic_retinopathy=5,
    # structured
    clevr_count=8,
    clevr_dist=6,
    dmlab=6,
    kitti=4,
    dsprites_loc=16,
    dsprites_ori=16,
    smallnorb_azi=18,
    smallnorb_ele=9)
assert task in class_counts, (f'VTAB_TASK={task} is no task of VTAB-1k; set '
                              f'it to one of {", ".join(class_counts)}.')
num_classes = class_counts[task]
data_root = f'data/vtab-1k/{task}'

# squashed to 224 x 224 from any shape; no augmentation
train_pipeline = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(
        type='mmpretrain.Resize',
        scale=(224, 224),
        backend='pillow',
        interpolation='bicubic'),
    dict(type='mmpretrain.PackInputs')
]
test_pipeline = train_pipeline

train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmpretrain.CustomDataset',
        data_root=data_root,
        ann_file='train800val200.txt',
        pipeline=train_pipeline))
val_dataloader = None
test_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmpretrain.CustomDataset',
        data_root=data_root,
        ann_file='test.txt',
        test_mode=True,
        pipeline=test_pipeline))

val_evaluator = None
test_evaluator = dict(type='mmpretrain.Accuracy', topk=(1, ))
