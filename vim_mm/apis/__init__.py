# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What users call: inference, ranking a zoo, baking modules into a trunk,
generating images, exporting models."""

from vim_mm._moved import moved_names
from .bake import bake
from .export import Exported, export_model, export_onnx
from .generate import generate
from .inferencer import ViMInferencer
from .ranking import Ranking, rank_modules

__all__ = [
    'Exported', 'Ranking', 'ViMInferencer', 'bake', 'export_model',
    'export_onnx', 'generate', 'rank_modules'
]
__getattr__ = moved_names(__name__)
