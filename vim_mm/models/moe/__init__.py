# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .adaptation import load_adaptation, save_adaptation
from .dispatch import DISPATCHES, Route, segment_mm, sum_rows, take_rows
from .experts import ExpertGroup, Experts
from .ffn import Ffn, Moved, find_ffns
from .freezing import freeze, protect
from .load_moe import load_moe
from .moe_attention import MoEAttention
from .moe_file import MoEFile, MoEFileError, read_moe, save_moe
from .moe_mlp import MoELayer, MoEMlp, moe_layers
from .routers import Router
from .surgery import add_task, extract, set_k, tasks_of
from .to_moe import to_moe
from .upcycling import Upcycling, start_from_dense

__all__ = [
    'DISPATCHES', 'ExpertGroup', 'Experts', 'Ffn', 'MoEAttention', 'MoEFile',
    'MoEFileError', 'MoELayer', 'MoEMlp', 'Moved', 'Route', 'Router',
    'Upcycling', 'add_task', 'extract', 'find_ffns', 'freeze',
    'load_adaptation', 'load_moe', 'moe_layers', 'protect', 'read_moe',
    'save_adaptation', 'save_moe', 'segment_mm', 'set_k', 'start_from_dense',
    'sum_rows', 'take_rows', 'tasks_of', 'to_moe'
]
