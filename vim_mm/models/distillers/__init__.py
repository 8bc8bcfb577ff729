# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .base_distiller import BaseDistiller
from .outside import Outside, build_outside

__all__ = ['BaseDistiller', 'Outside', 'build_outside']
