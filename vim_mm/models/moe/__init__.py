# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .dispatch import DISPATCHES, Route, segment_mm, sum_rows, take_rows
from .experts import ExpertGroup, Experts
from .moe_mlp import MoELayer, MoEMlp
from .routers import Router

__all__ = [
    'DISPATCHES', 'ExpertGroup', 'Experts', 'MoELayer', 'MoEMlp', 'Route',
    'Router', 'segment_mm', 'sum_rows', 'take_rows'
]
