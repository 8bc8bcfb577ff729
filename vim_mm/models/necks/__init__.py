# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .standardized_pooling import StandardizedPooling
from .vim_fusion_neck import ViMFusionNeck

#: The name it had in 0.1.0.
TokenPooling = StandardizedPooling

__all__ = ['StandardizedPooling', 'TokenPooling', 'ViMFusionNeck']
