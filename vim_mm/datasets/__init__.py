# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# mmcv's transforms register only when they are imported
from mmcv import transforms  # noqa: F401

from .few_shot import FewShot
from .task_dataset import Place, TaskDataset
from .task_loader import TaskLoader, TaskLoaders
from .task_sampler import TaskBatchSampler

__all__ = [
    'FewShot', 'Place', 'TaskBatchSampler', 'TaskDataset', 'TaskLoader',
    'TaskLoaders'
]
