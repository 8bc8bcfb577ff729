# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .build import build_model

__all__ = ['build_model']
