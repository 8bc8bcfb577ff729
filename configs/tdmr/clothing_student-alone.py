# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Baseline of TDMR: the student alone, at the same steps and views.

    python tools/train.py configs/tdmr/clothing_student-alone.py

Expected result: README.md of this folder.
"""
_base_ = './clothing_mobilenet-v2.py'

model = dict(schedule=dict(feature=0., logits=0.))
custom_hooks = [_base_.cost_hook, _base_.warm_head]
