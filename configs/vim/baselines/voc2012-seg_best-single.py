# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""VOC 2012 segmentation: the one module of the best score.

Chosen by ``ScoreGatesHook`` on training images alone, weight one everywhere.
"""
_base_ = '../downstream_voc2012-seg.py'

model = dict(backbone=dict(fusion=dict(top_k=1, learn=False)))
