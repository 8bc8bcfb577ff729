# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The control of IRF: the head first, but on the original images (LP-FT).

    python tools/train.py configs/ota/lp-ft_clothing_efficientnet-lite0.py

What IRF gains over this comes from re-representation, not from the order.
"""
_base_ = './irf_clothing_efficientnet-lite0.py'

hooks = _base_.custom_hooks
hooks[0].release = None
custom_hooks = hooks
