# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Description of a family of pretrained trunks."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .sources import PackagedFile, read_state_dict

__all__ = ['Family', 'StateDict']

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """How one family of published weights becomes a bare mm* backbone.

    Attributes:
        convert (Callable): Maps the published tensors to the keys of the
            backbone.
        backbone (Callable, optional): Config of the backbone that takes the
            converted tensors exactly, used to check them. None where the
            tensors already name an OpenMMLab backbone of any type.
        licence (str): Licence of the weights.
        packaged (PackagedFile, optional): Where the weights are found when no
            source is given. None where the user brings the file.
        read (Callable): Reads the source file, ``(path, trust) -> tensors``.
    """

    convert: Callable[[StateDict], StateDict]
    backbone: Callable[[StateDict], dict] | None
    licence: str
    packaged: PackagedFile | None = None
    read: Callable[[Path, bool], StateDict] = read_state_dict
