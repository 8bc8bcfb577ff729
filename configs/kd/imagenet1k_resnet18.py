# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""ImageNet-1k: ResNet-18 learns of ResNet-34, the usual comparison.

    bash tools/dist_train.sh configs/kd/imagenet1k_resnet18.py 8

Expected result: not measured. Student and schedule are mmpretrain's (69.90
top-1 without a teacher, its metafile says; the teacher has 73.62). Weights of
the losses, 0.1 and 0.9 at a temperature of 4, are ours.
"""
_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'

model = dict(
    _delete_=True,
    type='vim_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model=dict(
            _scope_='mmpretrain',
            type='mmpretrain.ImageClassifier',
            data_preprocessor=_base_.data_preprocessor,
            backbone=dict(type='mmpretrain.ResNet', depth=34),
            neck=dict(type='mmpretrain.GlobalAveragePooling'),
            head=dict(
                type='mmpretrain.LinearClsHead',
                num_classes=1000,
                in_channels=512)),
        checkpoint='{{$VIM_MM_WEIGHTS:weights}}/resnet34_imagenet1k.pth'),
    own_weight=0.1,
    criteria={
        ('logits', 'logits'): dict(type='vim_mm.LogitsKL', tau=4., weight=0.9)
    })
