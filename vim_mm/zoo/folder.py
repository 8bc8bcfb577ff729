# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Reading the folder of one module."""

from typing import BinaryIO, Callable, Dict, Optional, Tuple

from torch import Tensor

from vim_mm.utils.files import sha256
from vim_mm.utils.reading import JSON_BYTES, OpenFolder, ReadError
from vim_mm.utils.tensor_files import check
from . import files
from .card import ModuleCard, ZooError
from .checks import check_head, check_module

CARD, MODULE, HEAD = 'card.json', 'module.safetensors', 'head.safetensors'
#: Bytes of a tensor file, and what it may have beyond its parameters.
TENSOR_BYTES, EXTRA_BYTES = 4 << 30, 64 << 20


def read_card(folder: OpenFolder) -> ModuleCard:
    """Read the card of a module.

    Raises:
        ZooError: If it is missing or invalid.
    """
    path = folder.path / CARD
    try:
        return ModuleCard.from_json(folder.read(CARD, JSON_BYTES))
    except FileNotFoundError:
        raise ZooError(f'{str(path)!r} is missing; without its card a module '
                       'cannot be used: get it again from its source.'
                       ) from None
    except (ReadError, ZooError) as error:
        raise ZooError(f'{str(path)!r}: {error}') from None


def read_module(folder: OpenFolder,
                card: ModuleCard) -> Tuple[bytes, Dict[str, Tensor]]:
    """Read the bytes and tensors of a module and check them.

    Raises:
        ZooError: If they are damaged or do not fit the card.
    """
    limit = min(TENSOR_BYTES, 8 * card.num_params + EXTRA_BYTES)
    data, tensors = _read(folder, MODULE, card.sha256, limit)
    check_module(card, tensors)
    return data, tensors


def read_head(
        folder: OpenFolder, card: ModuleCard
) -> Tuple[Optional[bytes], Optional[Dict[str, Tensor]]]:
    """Read the bytes and tensors of a task head; None where there is none.

    Raises:
        ZooError: If they are damaged.
    """
    if card.head_sha256 is None:
        return None, None
    data, head = _read(folder, HEAD, card.head_sha256, TENSOR_BYTES)
    check_head(card.name, head)
    return data, head


def read_all(
        folder: OpenFolder,
        name: Optional[str] = None
) -> Tuple[ModuleCard, bytes, Optional[bytes]]:
    """A card and the verified bytes of the module and its head.

    Args:
        folder (OpenFolder): The folder.
        name (str, optional): The name that the card must have. Defaults to
            None, any.

    Raises:
        ZooError: If something is missing, damaged or does not fit.
    """
    card = read_card(folder) if name is None else named_card(folder, name)
    return card, read_module(folder, card)[0], read_head(folder, card)[0]


def check_all(folder: OpenFolder, name: str) -> None:
    """Check everything in the folder of a module.

    Raises:
        InvalidModule: If anything is wrong with it.
    """
    problems = []

    def note(read: Callable) -> Optional[ModuleCard]:
        try:
            return read()
        except ZooError as error:
            problems.append(str(error))
            return None

    card = note(lambda: named_card(folder, name))
    if card is not None:
        note(lambda: read_module(folder, card))
        note(lambda: read_head(folder, card))
    if problems:
        raise InvalidModule(problems)


def named_card(folder: OpenFolder, name: str) -> ModuleCard:
    """The card of the module of a name.

    Raises:
        ZooError: If it is missing or invalid, or another module's.
    """
    card = read_card(folder)
    if card.name != name:
        raise ZooError(f'The folder of module {name!r} holds the card of '
                       f'{card.name!r}; add the module again.')
    return card


class InvalidModule(ZooError):
    """All that is wrong with a module.

    Args:
        problems (list[str]): A sentence for each.
    """

    def __init__(self, problems: list) -> None:
        super().__init__(' '.join(problems))
        self.problems = problems


def _look(file: BinaryIO) -> None:
    """Refuse what is large and none of ours before all of it is read."""
    if file.seek(0, 2) > EXTRA_BYTES:
        check(file)


def _read(folder: OpenFolder, name: str, digest: str,
          limit: int) -> Tuple[bytes, Dict[str, Tensor]]:
    """Read a tensor file once: what is hashed is what is parsed."""
    path = folder.path / name
    try:
        data = folder.read(name, limit, _look)
    except FileNotFoundError:
        raise ZooError(f'{str(path)!r} is missing, but the card names it; '
                       'get the module again from its source.') from None
    except ReadError as error:
        raise ZooError(f'{str(path)!r}: {error}; get the module again from '
                       'its source.') from None
    if sha256(data) != digest:
        raise ZooError(f'{str(path)!r} is damaged or was exchanged: its '
                       'sha256 is not the one on the card; get the module '
                       'again from its source.')
    return data, files.unpack(data, path)
