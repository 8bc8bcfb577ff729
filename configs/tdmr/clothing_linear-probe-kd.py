# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Baseline of TDMR: distillation from a linear probe of the frozen features.

    python tools/train.py configs/tdmr/clothing_linear-probe-kd.py

Expected result: README.md of this folder.
"""
_base_ = './clothing_mobilenet-v2.py'

model = dict(
    proxy=dict(reprogram=False),
    schedule=dict(kind='constant', feature=0.))
