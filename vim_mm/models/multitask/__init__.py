# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .multitask_model import MultiTaskModel

__all__ = ['MultiTaskModel']
