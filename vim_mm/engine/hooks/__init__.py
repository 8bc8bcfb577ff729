# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .better_gates_hook import BetterGatesHook
from .cost_hook import CostHook
from .exact_hook import ExactHook
from .finite_loss_hook import FiniteLossHook
from .frozen_trunk_hook import FrozenTrunkHook
from .function_hook import FunctionHook
from .gate_log_hook import GateLogHook
from .guard_hook import GuardHook
from .hold_out_gates_hook import HoldOutGatesHook
from .module_head_hook import ModuleHeadHook
from .module_to_zoo_hook import ModuleToZooHook
from .norm_eval_hook import NormEvalHook
from .proxy_hook import ProxyHook
from .routing_log_hook import RoutingLogHook
from .score_gates_hook import ScoreGatesHook
from .stop_hook import StopHook
from .student_hook import StudentHook
from .summary_hook import SummaryHook
from .warm_head_hook import WarmHeadHook

__all__ = [
    'BetterGatesHook', 'CostHook', 'ExactHook', 'FiniteLossHook',
    'FrozenTrunkHook', 'FunctionHook', 'GateLogHook', 'GuardHook',
    'HoldOutGatesHook', 'ModuleHeadHook', 'ModuleToZooHook', 'NormEvalHook',
    'ProxyHook', 'RoutingLogHook', 'ScoreGatesHook', 'StopHook', 'StudentHook',
    'SummaryHook', 'WarmHeadHook'
]
