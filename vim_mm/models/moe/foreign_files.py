# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Weights of experts for a part that has none.

Loaders leave them out and log it, and the part's MLPs stay random.
"""

import os
from typing import Iterable, Mapping

from torch import nn

from .moe_file import MoEFileError, header_of
from .moe_layer import moe_layers
from .structure import holds_experts


def check_init(model: nn.Module) -> None:
    """Refuse a moe file as the weights of a part without experts.

    Args:
        model (nn.Module): The model, before it is initialised.

    Raises:
        MoEFileError: If the ``init_cfg`` of a part names one.
    """
    for name, part in model.named_modules():
        entries = getattr(part, 'init_cfg', None) or []
        for entry in [entries] if isinstance(entries, Mapping) else entries:
            path = os.path.expanduser(str(entry.get('checkpoint')))
            if path.endswith('.safetensors') and os.path.isfile(path):
                check_kind(part, path, header_of(path).shapes, name)


def check_kind(part: nn.Module, path: str, names: Iterable[str],
               what: str) -> None:
    """Refuse weights of experts for a part that has none.

    Args:
        part (nn.Module): The part.
        path (str): The file.
        names (Iterable[str]): Of its tensors.
        what (str): Name of the part.

    Raises:
        MoEFileError: If it is so.
    """
    if holds_experts(names) and not moe_layers(part):
        raise MoEFileError(
            f"The weights '{path}' are of a trunk with experts, but `{what}` "
            f'({type(part).__name__}) has none, and its MLPs would stay '
            "random; take `dict(type='vim_mm.load_moe', checkpoint=…)` with "
            'a moe file (`vim-mm moe extract`) in its place.')
