# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""TDMR, co-trained: reprogramming goes on learning, with a shared classifier.

    python tools/train.py configs/tdmr/clothing_cotrain.py

Expected result: not measured yet.
"""
_base_ = './clothing_mobilenet-v2.py'

model = dict(
    cotrain=True, share_classifier=True, proxy=dict(channels=1280))
