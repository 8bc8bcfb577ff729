# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .slots import DEFAULT_SLOTS, SlotSpec, find_slots
from .trunk import build_trunk, load_trunk_weights
from .vim_backbone import ViMBackbone

__all__ = [
    'DEFAULT_SLOTS', 'SlotSpec', 'ViMBackbone', 'build_trunk', 'find_slots',
    'load_trunk_weights'
]
