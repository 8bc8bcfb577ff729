# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""ADE20K: the one module of the best score.

Chosen by ``ScoreGatesHook`` on training images alone, weight one everywhere.
"""
_base_ = '../downstream_ade20k.py'

model = dict(backbone=dict(fusion=dict(top_k=1, learn=False)))
