# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .gates import (BaseFusion, EnsMoE, FixedFusion, ParameterMerge,
                    build_fusion)

__all__ = [
    'BaseFusion', 'EnsMoE', 'FixedFusion', 'ParameterMerge', 'build_fusion'
]
