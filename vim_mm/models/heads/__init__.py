# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .task_heads import TaskHeads

__all__ = ['TaskHeads']
