# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from . import (adapters, backbones, distillers, export, fusion, generators,
               heads, moe, multitask, necks)
from .build import build_model

__all__ = [
    'adapters', 'backbones', 'build_model', 'distillers', 'export', 'fusion',
    'generators', 'heads', 'moe', 'multitask', 'necks'
]
