# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Weights in other formats: trunks, ViM's release, PEFT adapters."""

from .peft_adapter import export_adapter, import_adapter
from .peft_layouts import LAYOUTS
from .vim_release import convert_release

__all__ = ['LAYOUTS', 'convert_release', 'export_adapter', 'import_adapter']
