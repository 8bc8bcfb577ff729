# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Files from addresses, which may be of no use."""

from http.client import HTTPException
from urllib.error import HTTPError, URLError

import torch

from .checkpoint_form import CheckpointError
from .messages import short


class DownloadError(CheckpointError):
    """An address that cannot be read."""


def download(url: str, path: str) -> None:
    """Fetch a file.

    Args:
        url (str): Its address.
        path (str): Where to write it; nothing is left there after an error.

    Raises:
        DownloadError: If the address cannot be read.
    """
    try:
        torch.hub.download_url_to_file(url, path, progress=False)
    except (URLError, HTTPException, ConnectionError, TimeoutError,
            UnicodeError) as error:
        raise DownloadError(
            f'{short(url)} cannot be fetched ({_reason(error)}): check the '
            'address, or fetch it where there is a network, and name the file '
            'in its place (`init_cfg.checkpoint` of a part, `load_from`, or '
            'the checkpoint of the command).') from error


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f'the server says {error.code}, {error.reason}'
    said = getattr(error, 'reason', None) or error
    words = getattr(said, 'strerror', None) or str(said)
    return words.rstrip('. ') or type(error).__name__
