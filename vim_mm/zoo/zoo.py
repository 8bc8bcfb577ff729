# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A directory of modules: what changes it."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Dict, Iterable, List, Mapping, Optional, Tuple, Union

from torch import Tensor

from vim_mm.utils.files import sha256
from vim_mm.utils.reading import JSON_BYTES, HeldFolder
from vim_mm.version import __version__
from . import files
from .card import ModuleCard, ZooError, check_name
from .checks import check_head, check_module, count_params
from .folder import CARD, HEAD, MODULE, read_all
from .locking import check_writable, locked
from .parcel import open_parcel, read_parcel, write_parcel
from .zoo_reader import ZooReader, tell


class Zoo(ZooReader):
    """A directory with one folder per module.

    ``<root>/<name>/`` holds ``card.json``, ``module.safetensors`` and, if the
    task head that was trained with the module is kept, ``head.safetensors``.
    Adding, overwriting and removing change that one folder only, each in one
    step, and read no other. A reader sees the old or the new version, whole.

    Args:
        root: The directory. The first save or add creates it.
    """

    def save(self,
             card: ModuleCard,
             tensors: Mapping[str, Tensor],
             head: Optional[Mapping[str, Tensor]] = None,
             overwrite: bool = False) -> ModuleCard:
        """Write a module completely or not at all.

        Args:
            card: Its card. The number of parameters, checksums and versions
                are filled in.
            tensors: By ``'<slot>.<param>'``.
            head: The state of the task head trained with it.
            overwrite: Whether to replace a module of this name. The present
                one stays until the new one is complete.

        Returns:
            The card as written.

        Raises:
            ZooError: If the name is taken, or the tensors do not fit the card.
        """
        data = files.pack(tensors)
        head_data = None if head is None else files.pack(head)
        card = replace(
            card,
            num_params=count_params(tensors),
            sha256=sha256(data),
            head_sha256=head_data and sha256(head_data),
            vim_mm_version=__version__)
        check_module(card, tensors)
        check_head(card.name, head or {})
        for content in filter(None, (data, head_data)):
            files.check(content, card.name)
        self._publish(card, data, head_data, overwrite)
        return card

    def add(self,
            source: Union[str, Path],
            name: Optional[str] = None,
            problems: Optional[Dict[str, str]] = None) -> List[str]:
        """Copy modules from elsewhere, each verified before it is written.

        Of another zoo all valid modules are taken. Those that are here
        already, the very same, count as taken, so that what was interrupted
        is gone on with by repeating it.

        Args:
            source: The folder of a module, or another zoo to take all of.
            name: A new name, for a single module.
            problems: Takes why modules of a zoo were not added, by name. A
                warning says it when None.

        Returns:
            The names under which they are now known.

        Raises:
            ZooError: If the source holds no module that can be added, or is
                the folder of one whose name is taken.
        """
        source = Path(os.path.abspath(source))
        if files.holds_any(source.parent, source.name, (CARD, )):
            card, *content = files.read_version(source.parent, source.name,
                                                read_all)
            card = replace(card, name=check_name(name or card.name))
            self._publish(card, *content)
            return [card.name]
        found, misnamed = Zoo(source).names(), Zoo(source).misnamed()
        if not found and not misnamed:
            raise ZooError(f'{str(source)!r} is neither the folder of a '
                           f'module (with a {CARD}) nor a zoo with modules.')
        number = len(found) + len(misnamed)
        if name is not None and number != 1:
            raise ZooError(f'{str(source)!r} holds {number} modules; give the '
                           'folder of one to rename it.')
        check_writable(self.root)
        added, bad = self._add_each(Zoo(source), found, name)
        bad.update(misnamed)
        if not added and problems is None:
            raise ZooError(f'None of the {len(bad)} modules of '
                           f'{str(source)!r} can be added: '
                           f'{" ".join(bad.values())}')
        tell(bad, problems)
        return added

    def _add_each(self, source: 'Zoo', names: Iterable[str],
                  new_name: Optional[str]) -> Tuple[List[str], Dict[str, str]]:
        """The modules that are added, and what is wrong with the others."""
        added, bad = [], {}
        for name in names:
            try:
                card, *content = source._read(
                    name, lambda folder: read_all(folder, name))
                card = replace(card, name=new_name or card.name)
                self._publish(card, *content, again=True)
                added.append(card.name)
            except ZooError as error:
                bad[name] = str(error)
        return added, bad

    def push(self, name: str, path: Union[str, Path]) -> str:
        """Write a module, verified, into one tar to hand on.

        Args:
            name: Its name.
            path: The tar, whose name ends in ``.tar``.

        Returns:
            The sha256 of the tar, to be told to who gets it.

        Raises:
            ZooError: If there is no such module, it is damaged, or the tar
                cannot be written.
        """
        content = _content(*self._read(name, read_all))
        return write_parcel(path, name, content)

    def pull(self,
             source: str,
             digest: Optional[str] = None,
             name: Optional[str] = None) -> Tuple[str, str]:
        """Add the module in a tar, verified before it is written.

        Args:
            source: Path of the tar, or its URL (file, http, https).
            digest: The sha256 that the tar must have; any when None.
            name: A new name; its own when None.

        Returns:
            The name under which it is now known, and the tar's sha256.

        Raises:
            FileNotFoundError: If there is no such file.
            ZooError: If it cannot be read, is no valid module or another one
                than was meant, or the name is taken; nothing is added then.
        """
        found, data = read_parcel(source, digest)
        content = open_parcel(data, source)
        try:
            card, *parts = read_all(HeldFolder(Path(source), content))
        except ZooError as error:
            raise ZooError(f"'{source}' holds no valid module. "
                           f'{error}') from error
        card = replace(card, name=check_name(name or card.name))
        self._publish(card, *parts)
        return card.name, found

    def remove(self, name: str) -> None:
        """Delete a module.

        Raises:
            ZooError: If there is no such module.
        """
        self._demand(name)
        with locked(self.root):
            self._demand(name)
            files.withdraw(self.root, name)

    def _demand_free(self, name: str) -> None:
        if name in self:
            raise ZooError(f'The zoo {str(self.root)!r} already has a module '
                           f'{name!r}; choose another name, overwrite it on '
                           'saving, or remove it first.')

    def _publish(self,
                 card: ModuleCard,
                 data: bytes,
                 head_data: Optional[bytes],
                 overwrite: bool = False,
                 again: bool = False) -> None:
        """Write a module; with ``again`` the very same may be here already."""
        content = _content(card, data, head_data)
        with locked(self.root):
            here = card.name in self
            if again and here and self._is(card):
                return
            if not here and os.path.lexists(self.root / card.name):
                raise ZooError(f'{str(self.root / card.name)!r} is no folder, '
                               'so no module can be there; move it away.')
            if not overwrite:
                self._demand_free(card.name)
            files.publish(self.root, card.name, content)

    def _is(self, card: ModuleCard) -> bool:
        """Whether a module here is the one of a card."""
        try:
            return self.card(card.name) == card
        except ZooError:
            return False


def _content(card: ModuleCard, data: bytes,
             head_data: Optional[bytes]) -> Dict[str, bytes]:
    """The files of a module, by name.

    Raises:
        ZooError: If the card could not be read again.
    """
    content = {CARD: card.to_json().encode(), MODULE: data}
    if head_data is not None:
        content[HEAD] = head_data
    if len(content[CARD]) > JSON_BYTES:
        raise ZooError(
            f'The card of module {card.name!r} has {len(content[CARD]):,} '
            f'bytes, and with more than {JSON_BYTES:,} it cannot be read '
            'again; shorten its texts.')
    return content
