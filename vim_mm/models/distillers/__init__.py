# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .base_distiller import BaseDistiller
from .consistent_model import ConsistentModel
from .distiller import Distiller
from .feature_losses import MMD, AFTLoss, NormalizedMSE
from .losses import CosineSmoothL1, LinearCKA, LogitsKL
from .outside import Outside, build_outside
from .projectors import LinearProjector, MLPProjector
from .proxy_space import ProxySpace
from .schedule import Schedule
from .tdmr_distiller import TDMRDistiller

__all__ = [
    'AFTLoss', 'BaseDistiller', 'ConsistentModel', 'CosineSmoothL1',
    'Distiller', 'LinearCKA', 'LinearProjector', 'LogitsKL', 'MLPProjector',
    'MMD', 'NormalizedMSE', 'Outside', 'ProxySpace', 'Schedule',
    'TDMRDistiller', 'build_outside'
]
