# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .dispatch import DISPATCHES, Route, segment_mm, sum_rows, take_rows
from .experts import ExpertGroup, Experts
from .load_moe import load_moe
from .moe_file import MoEFile, MoEFileError, read_moe, save_moe
from .moe_mlp import MoELayer, MoEMlp
from .routers import Router
from .surgery import (add_task, extract, freeze, moe_layers, protect, set_k,
                      tasks_of)

__all__ = [
    'DISPATCHES', 'ExpertGroup', 'Experts', 'MoEFile', 'MoEFileError',
    'MoELayer', 'MoEMlp', 'Route', 'Router', 'add_task', 'extract', 'freeze',
    'load_moe', 'moe_layers', 'protect', 'read_moe', 'save_moe', 'segment_mm',
    'set_k', 'sum_rows', 'take_rows', 'tasks_of'
]
