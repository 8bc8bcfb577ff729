# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .multitask_model import MultiTaskModel
from .mutual_information import MutualInformation, mutual_information_loss
from .single_task import task_checkpoint, task_config, task_state

__all__ = [
    'MultiTaskModel', 'MutualInformation', 'mutual_information_loss',
    'task_checkpoint', 'task_config', 'task_state'
]
