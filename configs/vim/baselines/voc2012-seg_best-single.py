# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""VOC 2012 segmentation: the one module that helps most.

Chosen by ``ScoreGatesHook`` on training images alone, at the strength that
suits it, the same everywhere; none if none helps.
"""
_base_ = '../downstream_voc2012-seg.py'

model = dict(backbone=dict(fusion=dict(top_k=1, learn=False)))
