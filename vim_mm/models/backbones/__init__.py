# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .blank_image import blank_outputs
from .folding import Weights, gates_to_fold
from .moe_davit import MoEDaViT
from .moe_vision_transformer import MoEVisionTransformer
from .probe import find_slots, probe_slots
from .slots import (DEFAULT_LINEAR_SLOTS, DEFAULT_SLOTS, OUTPUT_SLOTS,
                    SlotSpec, match_slots)
from .slotted_trunk import SlottedTrunk
from .status import ModuleStatus, Status
from .trunk import build_trunk
from .vim_backbone import ViMBackbone
from .weights import load_trunk_weights

__all__ = [
    'DEFAULT_LINEAR_SLOTS', 'DEFAULT_SLOTS', 'MoEDaViT',
    'MoEVisionTransformer', 'ModuleStatus', 'OUTPUT_SLOTS', 'SlotSpec',
    'SlottedTrunk', 'Status', 'ViMBackbone', 'Weights', 'blank_outputs',
    'build_trunk', 'find_slots', 'gates_to_fold', 'load_trunk_weights',
    'match_slots', 'probe_slots'
]
