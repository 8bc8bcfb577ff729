# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""TDMR without a store: the foundation models run in each step.

    python tools/train.py configs/tdmr/clothing_live.py

Expected result: README.md of this folder.
"""
_base_ = './clothing_mobilenet-v2.py'

custom_hooks = [
    _base_.cost_hook,
    dict(_base_.proxy_hook, store=None), _base_.warm_head
]
