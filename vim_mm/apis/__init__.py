# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What users call: inference, ranking a zoo, baking modules into a trunk,
generating images."""

from vim_mm._moved import moved_names
from .bake import bake
from .generate import generate
from .inferencer import ViMInferencer
from .ranking import Ranking, rank_modules

__all__ = ['Ranking', 'ViMInferencer', 'bake', 'generate', 'rank_modules']
__getattr__ = moved_names(__name__)
