# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The zoo: a directory of modules, each a card and its tensors."""

from .card import ModuleCard, ZooError
from .export import head_state, is_head, save_module
from .fingerprint import same_trunk, trunk_fingerprint
from .zoo import Zoo

__all__ = [
    'ModuleCard', 'Zoo', 'ZooError', 'head_state', 'is_head', 'save_module',
    'same_trunk', 'trunk_fingerprint'
]
