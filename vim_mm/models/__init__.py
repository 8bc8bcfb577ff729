# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from . import (adapters, backbones, distillers, fusion, heads, moe, multitask,
               necks)
from .build import build_model

__all__ = [
    'adapters', 'backbones', 'build_model', 'distillers', 'fusion', 'heads',
    'moe', 'multitask', 'necks'
]
