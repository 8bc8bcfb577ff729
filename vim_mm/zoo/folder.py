# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Reading the folder of one module."""

from pathlib import Path
from typing import Dict, Optional, Tuple

from torch import Tensor

from vim_mm.utils.files import sha256
from . import files
from .card import ModuleCard, ZooError
from .checks import check_head, check_module

CARD, MODULE, HEAD = 'card.json', 'module.safetensors', 'head.safetensors'


def read_card(folder: Path) -> ModuleCard:
    """Read the card of a module.

    Raises:
        ZooError: If it is missing or invalid.
    """
    path = folder / CARD
    try:
        return ModuleCard.from_json(path.read_bytes())
    except FileNotFoundError:
        raise ZooError(f'{str(path)!r} is missing; without its card a module '
                       'cannot be used: get it again from its source.'
                       ) from None
    except ZooError as error:
        raise ZooError(f'{str(path)!r}: {error}') from None


def read_module(folder: Path,
                card: ModuleCard) -> Tuple[bytes, Dict[str, Tensor]]:
    """Read the bytes and tensors of a module and check them.

    Raises:
        ZooError: If they are damaged or do not fit the card.
    """
    data, tensors = _read(folder / MODULE, card.sha256)
    check_module(card, tensors)
    return data, tensors


def read_head(
        folder: Path, card: ModuleCard
) -> Tuple[Optional[bytes], Optional[Dict[str, Tensor]]]:
    """Read the bytes and tensors of a task head; None where there is none.

    Raises:
        ZooError: If they are damaged.
    """
    if card.head_sha256 is None:
        return None, None
    data, head = _read(folder / HEAD, card.head_sha256)
    check_head(card.name, head)
    return data, head


def _read(path: Path, digest: str) -> Tuple[bytes, Dict[str, Tensor]]:
    """Read a tensor file once: what is hashed is what is parsed."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ZooError(f'{str(path)!r} is missing, but the card names it; '
                       'get the module again from its source.') from None
    if sha256(data) != digest:
        raise ZooError(f'{str(path)!r} is damaged or was exchanged: its '
                       'sha256 is not the one on the card; get the module '
                       'again from its source.')
    return data, files.unpack(data, path)
