# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .dispatch import DISPATCHES, Route, segment_mm, sum_rows, take_rows
from .experts import ExpertGroup, Experts
from .ffn import Ffn, Moved, find_ffns
from .moe_mlp import MoELayer, MoEMlp
from .routers import Router
from .to_moe import add_experts, to_moe
from .upcycling import Upcycling, start_from_dense

__all__ = [
    'DISPATCHES', 'ExpertGroup', 'Experts', 'Ffn', 'MoELayer', 'MoEMlp',
    'Moved', 'Route', 'Router', 'Upcycling', 'add_experts', 'find_ffns',
    'segment_mm', 'start_from_dense', 'sum_rows', 'take_rows', 'to_moe'
]
