# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Baseline of TDMR: adaptive feature transfer (arXiv 2406.07337).

Its weight of 10 and the larger rate of the channels' weights are those of its
public code; optimizer, batch and steps are those of the other baselines.

    python tools/train.py configs/tdmr/clothing_aft.py

Expected result: README.md of this folder.
"""
_base_ = './clothing_mobilenet-v2.py'

model = dict(
    proxy=dict(reprogram=False, standardize=False),
    feature_loss=dict(type='vim_mm.AFTLoss'),
    schedule=dict(kind='constant', feature=10., logits=0.))
custom_hooks = [
    _base_.cost_hook,
    dict(_base_.proxy_hook, epochs=0), _base_.warm_head
]
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(feature_loss=dict(lr_mult=100.))))
