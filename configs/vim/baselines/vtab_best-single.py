# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""VTAB-1k: the one module that helps most.

Chosen by ``ScoreGatesHook`` on training images alone, at the strength that
suits it, the same everywhere; none if none helps.
"""
_base_ = '../downstream_vtab.py'

model = dict(backbone=dict(fusion=dict(top_k=1, learn=False)))
work_dir = f'work_dirs/vtab_best-single/{_base_.task}'
