# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Which modules of a zoo a head began with, for cards of what is made of it.

A model remembers it, and so does the ``meta`` of its checkpoints, under
:data:`KEY`: lists of parts by the name of the submodel, '' for the whole.
"""

from collections.abc import Mapping
from typing import Any, Dict, List

from torch import nn

from vim_mm.utils.checkpoint_form import CheckpointError
from vim_mm.zoo.card import is_part
from vim_mm.zoo.parts import together

KEY = 'head_made_of'
Parts = List[Dict[str, Any]]


def head_parts(model: nn.Module) -> Parts:
    """What a model's head, or those of its submodels, began with.

    Args:
        model (nn.Module): Any model.

    Returns:
        list[dict]: Parts of a card, see :func:`vim_mm.zoo.parts.part_of`.
    """
    return together(head_notes(model).values())


def add_head_parts(model: nn.Module,
                   parts: Parts,
                   alone: bool = False) -> None:
    """Note what a model's head begins with.

    Args:
        model (nn.Module): The model whose head it is.
        parts (list[dict]): See :func:`vim_mm.zoo.parts.part_of`.
        alone (bool): Whether nothing is left of what was noted before.
    """
    before = [] if alone else getattr(model, KEY, [])
    setattr(model, KEY, together([before, parts]))


def head_notes(model: nn.Module) -> Dict[str, Parts]:
    """What a checkpoint of a model says of its heads."""
    return {
        name: getattr(part, KEY)
        for name, part in model.named_modules() if getattr(part, KEY, None)
    }


def read_head_notes(model: nn.Module, checkpoint: Mapping, file: str) -> None:
    """Let a model know what a checkpoint that it loads says of its heads.

    Args:
        model (nn.Module): The model.
        checkpoint (Mapping): The checkpoint, or a state dict alone.
        file (str): Its name, for messages.

    Raises:
        CheckpointError: If these are no notes.
    """
    notes = (checkpoint.get('meta') or {}).get(KEY) or {}
    if not isinstance(notes, Mapping) or not all(
            isinstance(parts, list) and all(map(is_part, parts))
            for parts in notes.values()):
        raise CheckpointError(
            f'{file} says in `{KEY}` of its `meta` something else than what '
            'its heads were made of: fetch or write it again.')
    submodels = dict(model.named_modules())
    for name, parts in notes.items():
        add_head_parts(submodels.get(name, model), parts)


def keep_head_note(checkpoint: Mapping, name: str) -> None:
    """Reduce a checkpoint's notes, in place, to those of one submodel."""
    meta = checkpoint.get('meta') or {}
    notes = meta.get(KEY)
    if isinstance(notes, Mapping):
        meta[KEY] = {'': notes[name]} if name in notes else {}
