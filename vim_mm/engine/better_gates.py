# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Learned gates, compared with their start and with the bare trunk."""

from copy import deepcopy
from typing import Dict

from torch import Tensor

from vim_mm.features.module_rows import TRUNK
from vim_mm.models.fusion import FusionHolder
from .module_trials import ModuleTrials


def keep_better(trials: ModuleTrials, start: Dict[str, Tensor],
                part: FusionHolder, must_run: str) -> str:
    """Keep learned gates if they help more than their start and the trunk.

    Args:
        trials (ModuleTrials): Of the task.
        start (dict[str, Tensor]): State of the fusion before they learned.
        part (FusionHolder): It holds the fusion.
        must_run (str): Why the task cannot do without modules, if so.

    Returns:
        str: What was kept, and why.
    """
    fusion, trunk = part.fusion, trials.features.bare
    learned = deepcopy(fusion.state_dict())
    scores = {'learned': trials.final('learned')}
    fusion.load_state_dict(start)
    scores['start'] = trials.final('start')
    scores[TRUNK] = trials.final(trunk)
    kept = 'start'
    if trials.compare_final('learned', 'start').is_real:
        kept = 'learned'
        fusion.load_state_dict(learned)
    if not must_run and not trials.compare_final(kept, trunk).is_real:
        kept = TRUNK
        fusion.turn_off(part.task)
    values = ', '.join(f'{name} {value:.3f}'
                       for name, value in scores.items())
    return f'on held-out images {values}; kept: {kept}'
