# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .multitask_loops import (MultiTaskTestLoop, MultiTaskTrainLoop,
                              MultiTaskValLoop)

__all__ = ['MultiTaskTestLoop', 'MultiTaskTrainLoop', 'MultiTaskValLoop']
