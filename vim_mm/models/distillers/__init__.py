# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .base_distiller import BaseDistiller
from .consistent_model import ConsistentModel
from .distiller import Distiller
from .losses import CosineSmoothL1, LinearCKA, LogitsKL
from .outside import Outside, build_outside
from .projectors import LinearProjector, MLPProjector

__all__ = [
    'BaseDistiller', 'ConsistentModel', 'CosineSmoothL1', 'Distiller',
    'LinearCKA', 'LinearProjector', 'LogitsKL', 'MLPProjector', 'Outside',
    'build_outside'
]
