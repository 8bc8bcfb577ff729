# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What mends weights that do not fit, for messages."""

from contextlib import contextmanager
from typing import Iterator, List

from torch import nn

from vim_mm.utils.downloads import DownloadError
from .output_norms import is_any_norm


def need(trunk: nn.Module, missing: List[str]) -> str:
    """What mends weights that lack tensors, if they are not another's."""
    if type(trunk).__name__ == 'TIMMBackbone':
        return 'another `model.backbone.trunk.model_name`'
    parts = dict(trunk.named_modules())
    if getattr(trunk, 'norm_after_stage', False) and all(
            is_any_norm(parts[key.rpartition('.')[0]]) for key in missing):
        return ('`model.backbone.trunk.norm_after_stage=False`, as files of '
                'classifiers do')
    return f'converting first ({_converter(trunk)})'


def _converter(trunk: nn.Module) -> str:
    if hasattr(trunk, 'convert_weights'):
        other = not trunk.convert_weights
        return (f'`model.backbone.trunk.convert_weights={other}` for '
                f'{"official" if other else "OpenMMLab"} files')
    return '`vim-mm convert-trunk`'


def mend(trunk: nn.Module, error: Exception) -> str:
    """What mends an error of a library's own loader, empty if unknown."""
    if 'interp2d' in str(error):
        return (' Keep the `img_size` of the file, or install scipy<1.14, '
                'with which this library resizes.')
    return f' Try {_converter(trunk)}.' if hasattr(
        trunk, 'convert_weights') else ''


def said(error: Exception) -> str:
    """What an error says, with its kind where that is part of it."""
    lines = str(error.args[0] if error.args else '').strip().splitlines()
    words = ' '.join(map(str.strip, lines[:2])).rstrip('. ')
    kind = type(error).__name__
    return words if isinstance(error, ValueError) else f'{kind}: {words}'


@contextmanager
def reading(checkpoint: str) -> Iterator[None]:
    """Say of an address that cannot be read which setting it is of.

    Raises:
        DownloadError: If it is one, or names nothing that a library knows.
    """
    try:
        yield
    except (DownloadError, KeyError, ImportError) as error:
        if '://' not in checkpoint:
            raise
        why = str(error) if isinstance(error, DownloadError) else (
            f'{type(error).__name__}, {error}. Check the name, or name a file '
            'in its place.')
        raise DownloadError(
            f"The trunk weights '{checkpoint}' (`model.backbone.trunk."
            f'init_cfg.checkpoint`) cannot be read: {why}') from error
