# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A variant of IRF: the second half keeps features of an image and of its
re-representation together.

    python tools/train.py \\
        configs/ota/irf-consistent_clothing_efficientnet-lite0.py

Not measured; the weight is ours.
"""
_base_ = './irf_clothing_efficientnet-lite0.py'

plain = _base_.model
model = dict(
    _delete_=True,
    type='vim_mm.ConsistentModel',
    student=plain,
    release=_base_.release,
    weight=0.1)
