# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What checkpoints note beside their weights, for all that load them."""

from collections.abc import Mapping

from torch import nn

from .function_notes import check_function, keep_function_notes
from .head_origin import keep_head_note, read_head_notes


def read_notes(model: nn.Module, checkpoint: Mapping, file: str) -> None:
    """Take what a checkpoint notes into the model that loads it.

    The settings of its function are compared with the model's; what its heads
    began with is remembered.

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


def keep_notes(checkpoint: Mapping, name: str) -> None:
    """Reduce a checkpoint's notes, in place, to those of one submodel."""
    keep_head_note(checkpoint, name)
    keep_function_notes(checkpoint, name)
