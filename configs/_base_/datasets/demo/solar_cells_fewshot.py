# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# 40 solar cells of each of two classes to learn from; all others to test on.
_base_ = './solar_cells.py'

train_dataloader = dict(
    batch_size=32,
    sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True),
    dataset=dict(
        _delete_=True,
        type='vim_mm.FewShot',
        dataset=_base_.train_dataloader.dataset,
        per_class=40,
        seed=0))
