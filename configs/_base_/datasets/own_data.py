# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Loaders of one's own task. A child gives the data sets and the evaluator. An
# endless sampler suits schedules in iterations, however few the images.
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True))
val_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False))
