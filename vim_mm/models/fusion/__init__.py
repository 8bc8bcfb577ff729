# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .base_fusion import BaseFusion, build_fusion
from .ens_moe import EnsMoE, ParameterMerge
from .fixed_fusion import FixedFusion, FixedMerge
from .fusion_holder import FusionHolder
from .learned_fusion import LearnedFusion
from .linear_moe import LinearMoE
from .routed_moe import RoutedMoE

__all__ = [
    'BaseFusion', 'EnsMoE', 'FixedFusion', 'FixedMerge', 'FusionHolder',
    'LearnedFusion', 'LinearMoE', 'ParameterMerge', 'RoutedMoE', 'build_fusion'
]
