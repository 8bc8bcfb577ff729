# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Modules in the formats of others: ViM's release, PEFT's adapters."""

from .vim_release import convert_release

__all__ = ['convert_release']
