# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .probe import find_slots, probe_slots
from .slots import (DEFAULT_LINEAR_SLOTS, DEFAULT_SLOTS, OUTPUT_SLOTS,
                    SlotSpec, match_slots)
from .slotted_trunk import SlottedTrunk
from .trunk import build_trunk, load_trunk_weights
from .vim_backbone import ViMBackbone

__all__ = [
    'DEFAULT_LINEAR_SLOTS', 'DEFAULT_SLOTS', 'OUTPUT_SLOTS', 'SlotSpec',
    'SlottedTrunk', 'ViMBackbone', 'build_trunk', 'find_slots',
    'load_trunk_weights', 'match_slots', 'probe_slots'
]
