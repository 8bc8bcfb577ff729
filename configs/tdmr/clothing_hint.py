# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Baseline of TDMR: features without reprogramming (FitNet's hint).

The projected features of the student follow those of the foundation models,
standardised, all at length one.

    python tools/train.py configs/tdmr/clothing_hint.py

Expected result: README.md of this folder.
"""
_base_ = './clothing_mobilenet-v2.py'

model = dict(
    proxy=dict(reprogram=False),
    feature_loss=dict(type='vim_mm.NormalizedMSE'),
    schedule=dict(kind='constant', logits=0.))
custom_hooks = [
    _base_.cost_hook,
    dict(_base_.proxy_hook, epochs=0), _base_.warm_head
]
