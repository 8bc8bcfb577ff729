# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# mmcv's transforms register only when they are imported
from mmcv import transforms  # noqa: F401

from .few_shot import FewShot
from .soft_only import SoftOnly
from .task_dataset import Place, TaskDataset
from .task_loader import TaskLoader, TaskLoaders
from .task_sampler import TaskBatchSampler
from .views import View, Views, views_of

__all__ = [
    'FewShot', 'Place', 'SoftOnly', 'TaskBatchSampler', 'TaskDataset',
    'TaskLoader', 'TaskLoaders', 'View', 'Views', 'views_of'
]
