# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Images made by networks: re-represented, and generated from guides."""

from .canvas import BaseCanvas, LatentCanvas, PixelCanvas, PyramidCanvas
from .guided import Generated, GuidedGenerator
from .re_represent import ReRepresent, re_represent
from .upstream_release import (UpstreamCard, load_upstream_release,
                               read_upstream_card, save_upstream_release)
from .vq_autoencoder import VQAutoEncoder, code_use

__all__ = [
    'BaseCanvas', 'Generated', 'GuidedGenerator', 'LatentCanvas',
    'PixelCanvas', 'PyramidCanvas', 'ReRepresent', 'UpstreamCard',
    'VQAutoEncoder', 'code_use', 'load_upstream_release', 're_represent',
    'read_upstream_card', 'save_upstream_release'
]
