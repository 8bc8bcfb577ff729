# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .token_pooling import TokenPooling
from .vim_fusion_neck import ViMFusionNeck

__all__ = ['TokenPooling', 'ViMFusionNeck']
