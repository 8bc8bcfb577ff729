# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What checkpoints note beside their weights, for all that load them."""

import logging
from collections.abc import Mapping

from mmengine.logging import print_log
from torch import nn

from vim_mm.utils.messages import MESSAGE, cut, printable
from .function_notes import check_function, keep_function_notes
from .head_origin import keep_head_note, read_head_notes

#: What has changed in a frozen trunk that the checkpoint leaves out.
TRUNK_MOVED = 'trunk_moved'


def read_notes(model: nn.Module, checkpoint: Mapping, file: str) -> None:
    """Take what a checkpoint notes into the model that loads it.

    The settings of its function are compared with the model's. What its heads
    began with is remembered, and whether its trunk changed while it learned,
    which a line tells as well.

    Args:
        model (nn.Module): The model.
        checkpoint (Mapping): The checkpoint, or a state dict alone.
        file (str): Its name, for messages.

    Raises:
        CheckpointError: If these are no notes.
        ValueError: If the checkpoint's weights are of another function.
    """
    check_function(model, checkpoint, file)
    read_head_notes(model, checkpoint, file)
    said = (checkpoint.get('meta') or {}).get(TRUNK_MOVED)
    if said:
        said = cut(printable(str(said)), MESSAGE)
        setattr(model, TRUNK_MOVED, said)
        print_log(f'{file} says of its training: {said}',
                  logger='current', level=logging.WARNING)


def keep_notes(checkpoint: Mapping, name: str) -> None:
    """Reduce a checkpoint's notes, in place, to those of one submodel."""
    keep_head_note(checkpoint, name)
    keep_function_notes(checkpoint, name)
