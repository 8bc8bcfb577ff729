# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""An upstream release out of ImageNet-1k, at 256 px.

    python tools/release.py publish configs/ota/release_imagenet1k_256px.py \\
        --out work_dirs/ota/release_imagenet1k

OTA's own settings are not known. Image size, codebook and downsampling are
those that taming-transformers published for a VQ-GAN on ImageNet; there is no
adversarial and no perceptual loss here, and the schedule is ours. Not
measured. To train on several devices use tools/dist_train.sh, and give what
it leaves to --checkpoint.
"""
_base_ = './release_coco_64px.py'

size = 256
data_root = 'data/imagenet/'
train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = size
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = size
test_pipeline[2].crop_size = size
train_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    dataset=dict(
        data_root=data_root, data_prefix='train', pipeline=train_pipeline))
held_out_dataloader = dict(
    dataset=dict(
        data_root=data_root, data_prefix='val', pipeline=test_pipeline))

release_card = dict(
    name='imagenet1k-256px',
    data='ImageNet-1k (train), crops of 256 px',
    licence='for research that is not commercial, as ImageNet')

model = dict(
    codebook_size=1024, code_dims=256, channels=128, downsample=16)

max_iters = 200000
train_cfg = dict(max_iters=max_iters)
optim_wrapper = dict(optimizer=dict(lr=3e-4))
param_scheduler = dict(eta_max=3e-4, total_steps=max_iters)
default_hooks = dict(checkpoint=dict(interval=10000))
