# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""From one's own data to a config that trains a module on it."""

from .own_data import OwnData, OwnDataError
from .own_trunk import TrunkError, known_trunks
from .plan import in_words
from .task import NewTask, new_task, read_data

__all__ = [
    'NewTask', 'OwnData', 'OwnDataError', 'TrunkError', 'in_words',
    'known_trunks', 'new_task', 'read_data'
]
