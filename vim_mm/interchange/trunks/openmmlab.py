# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Stock OpenMMLab checkpoints: the backbone alone, its keys unchanged."""

from .family import Family, StateDict
from .sources import OtherLayout

__all__ = ['MMPRETRAIN']

PREFIX = 'backbone.'


def convert(state: StateDict) -> StateDict:
    """Tensors under ``backbone.`` without this prefix."""
    bare = {
        k.removeprefix(PREFIX): v
        for k, v in state.items() if k.startswith(PREFIX)
    }
    if not bare:
        raise OtherLayout(
            f"no key starts with '{PREFIX}', as in checkpoints of whole "
            f"OpenMMLab models, the first is '{next(iter(state))}'")
    return bare


MMPRETRAIN = Family(
    convert=convert, backbone=None, licence='that of the checkpoint')
