# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""TDMR, co-trained: reprogramming goes on learning beside the student.

    python tools/train.py configs/tdmr/clothing_cotrain.py

One classifier of both: ``--cfg-options model.share_classifier=True
model.proxy.channels=2560``, the width of the student's features.

Expected result: README.md of this folder.
"""
_base_ = './clothing_mobilenet-v2.py'

model = dict(cotrain=True)
