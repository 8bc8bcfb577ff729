# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Images for a teacher: generated from guides."""

from .canvas import BaseCanvas, LatentCanvas, PixelCanvas, PyramidCanvas
from .guided import Generated, GuidedGenerator

__all__ = [
    'BaseCanvas', 'Generated', 'GuidedGenerator', 'LatentCanvas',
    'PixelCanvas', 'PyramidCanvas'
]
