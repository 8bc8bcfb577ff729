# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Ordinary on-disk datasets, made from data in pip packages."""

from .digits import digits_recipe
from .recipe import (Package, PreparationError, Recipe, default_out, prepare,
                     run_recipe)
from .solar_cells import solar_cells_recipe
from .tree_crowns import tree_crowns_recipe

__all__ = [
    'Package', 'PreparationError', 'Recipe', 'default_out', 'digits_recipe',
    'prepare', 'run_recipe', 'solar_cells_recipe', 'tree_crowns_recipe'
]
