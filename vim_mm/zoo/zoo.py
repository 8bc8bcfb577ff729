# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A directory of modules: reading, checking and changing it."""

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Dict, List, Mapping, Optional, Tuple, Union

from torch import Tensor, nn

from vim_mm.utils.files import sha256
from vim_mm.version import __version__
from . import files
from .card import Dims, ModuleCard, ZooError, check_name, is_name
from .checks import check_head, check_module, count_params
from .fingerprint import get_slot, same_trunk, trunk_fingerprint
from .folder import CARD, HEAD, MODULE, read_card, read_head, read_module
from .parcel import open_parcel, read_parcel, write_parcel


class Zoo:
    """A directory with one folder per module.

    ``<root>/<name>/`` holds ``card.json``, ``module.safetensors`` and, if the
    task head that was trained with the module is kept, ``head.safetensors``.
    Adding, overwriting and removing touch that one folder only, each in one
    step, independent of the size of the zoo.

    Args:
        root: The directory. The first save or add creates it.
    """

    def __init__(self, root: Union[str, Path]) -> None:
        self.root = Path(root).expanduser()

    def __repr__(self) -> str:
        return f'Zoo({str(self.root)!r})'

    def __contains__(self, name: object) -> bool:
        return is_name(name) and files.locate(self.root, name) is not None

    def names(self) -> List[str]:
        """Return the names of all modules, sorted.

        Raises:
            ZooError: If the directory does not exist.
        """
        if not self.root.is_dir():
            raise ZooError(
                f'There is no zoo at {str(self.root)!r}: the directory does '
                'not exist. Set `model.backbone.zoo` to the right one, or '
                'learn a module first (a midstream config).')
        names = set()
        for folder in self.root.iterdir():
            name = folder.name
            if name.startswith('.') and name.endswith('.old'):
                name = name[1:-len('.old')]
            files = [folder / file for file in (CARD, MODULE)]
            if is_name(name) and any(file.exists() for file in files):
                names.add(name)
        return sorted(names)

    def card(self, name: str) -> ModuleCard:
        """Return the card of a module.

        Raises:
            ZooError: If there is no such module or its card is invalid.
        """
        folder = self._folder(name)
        card = read_card(folder)
        if card.name != name:
            raise ZooError(f'The folder of module {name!r} holds the card of '
                           f'{card.name!r}; add the module again.')
        return card

    def cards(self) -> List[ModuleCard]:
        """Return all cards, sorted by name."""
        return [self.card(name) for name in self.names()]

    def load(self, name: str) -> Tuple[ModuleCard, Dict[str, Tensor]]:
        """Read a module and check it against its card.

        Args:
            name: Its name.

        Returns:
            The card, and the tensors by ``'<slot>.<param>'``, on the CPU.

        Raises:
            ZooError: If the module is unknown, damaged, or does not fit its
                card. Nothing is ever unpickled.
        """
        card = self.card(name)
        return card, read_module(self._folder(name), card)[1]

    def load_head(self, name: str) -> Dict[str, Tensor]:
        """Read the task head that was trained with a module.

        Args:
            name: Name of the module.

        Returns:
            What :func:`head_state` gave, on the CPU.

        Raises:
            ZooError: If the module is unknown or has no head, or the file is
                damaged.
        """
        card = self.card(name)
        _, head = read_head(self._folder(name), card)
        if head is None:
            raise ZooError(f'Module {name!r} was saved without a task head.')
        return head

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
        self._publish(card, data, head_data, overwrite)
        return card

    def add(self,
            source: Union[str, Path],
            name: Optional[str] = None) -> List[str]:
        """Copy modules from elsewhere, each verified before it is written.

        Args:
            source: The folder of a module, or another zoo to take all of.
            name: A new name, for a single module.

        Returns:
            The names under which they are now known.

        Raises:
            ZooError: If the source holds no valid module, or a name is taken;
                then nothing is added.
        """
        folders = _module_folders(Path(source))
        if name is not None and len(folders) != 1:
            raise ZooError(f'{str(source)!r} holds {len(folders)} modules; '
                           'give the folder of one to rename it.')
        names = []
        for folder in folders:
            card, _, _ = _read_all(folder)
            names.append(check_name(name or card.name))
            self._demand_free(names[-1])
        for folder, new_name in zip(folders, names):
            card, data, head_data = _read_all(folder)
            self._publish(replace(card, name=new_name), data, head_data)
        return names

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
        content = _content(*_read_all(self._folder(name)))
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
        with TemporaryDirectory() as folder:
            for file, part in content.items():
                Path(folder, file).write_bytes(part)
            try:
                card, *parts = _read_all(Path(folder))
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
        self._folder(name)
        with files.locked(self.root):
            self._folder(name)
            files.withdraw(self.root, name)

    def verify(self, name: Optional[str] = None) -> List[str]:
        """Find errors in a module, or in all of them.

        Args:
            name: The module; all when None.

        Returns:
            One sentence per problem; empty if all is well.

        Raises:
            ZooError: If there is no such module or zoo.
        """
        if name is None:
            return [
                problem for each in self.names()
                for problem in self.verify(each)
            ]
        folder = self._folder(name)
        try:
            card = self.card(name)
        except ZooError as error:
            return [str(error)]
        problems = []
        for read in (read_module, read_head):
            try:
                read(folder, card)
            except ZooError as error:
                problems.append(str(error))
        return problems

    @staticmethod
    def check_trunk(card: ModuleCard,
                    trunk: nn.Module,
                    dims: Optional[Mapping[str, Dims]] = None) -> None:
        """Refuse a trunk with other weights than the module was trained with.

        Args:
            card: Card of the module.
            trunk: The trunk, with its weights loaded.
            dims: Channels of the trunk's slots, where they are known; they
                give a clearer sentence than the fingerprint.

        Raises:
            ZooError: If a slot is missing or has other dims, or the weights
                differ.
        """
        who = f'Module {card.name!r} does not fit this trunk'
        for slot in card.slots:
            try:
                get_slot(trunk, slot)
            except ZooError as error:
                raise ZooError(f'{who}. {error}') from None
        for slot in card.slots:
            if dims is not None and dims.get(slot) != card.dims[slot]:
                raise ZooError(
                    f'{who}: slot {slot!r} has the dims {dims.get(slot)}, and '
                    f'the module was made for {card.dims[slot]}.')
        if not same_trunk(trunk, card.trunk['fingerprint'], card.slots):
            own = trunk_fingerprint(trunk, card.slots)
            found = {
                key: value
                for key, value in card.trunk.items() if key != 'fingerprint'
            }
            raise ZooError(
                f'{who}: the weights in its slots differ (fingerprint '
                f'{own[:12]}…, and the module was trained beside '
                f'{card.trunk["fingerprint"][:12]}…). Load the pretrained '
                f'weights that its card describes: {found}.')

    def _folder(self, name: str) -> Path:
        folder = files.locate(self.root, check_name(name))
        if folder is not None:
            return folder
        names = self.names()
        near = get_close_matches(name, names, cutoff=0.5)
        hint = (f'did you mean {" or ".join(near)}?' if near else
                f'it holds: {", ".join(names[:20]) or "no module yet"}.')
        raise ZooError(f'The zoo {str(self.root)!r} has no module {name!r}; '
                       f'{hint}')

    def _demand_free(self, name: str) -> None:
        if name in self:
            raise ZooError(f'The zoo {str(self.root)!r} already has a module '
                           f'{name!r}; choose another name, overwrite it on '
                           'saving, or remove it first.')

    def _publish(self,
                 card: ModuleCard,
                 data: bytes,
                 head_data: Optional[bytes],
                 overwrite: bool = False) -> None:
        content = _content(card, data, head_data)
        with files.locked(self.root):
            if not overwrite:
                self._demand_free(card.name)
            files.publish(self.root, card.name, content)


def _content(card: ModuleCard, data: bytes,
             head_data: Optional[bytes]) -> Dict[str, bytes]:
    """The files of a module, by name."""
    content = {CARD: card.to_json().encode(), MODULE: data}
    if head_data is not None:
        content[HEAD] = head_data
    return content


def _module_folders(source: Path) -> List[Path]:
    """Return the folder of one module, or those of all in a zoo."""
    if (source / CARD).exists():
        return [source]
    zoo = Zoo(source)
    folders = [files.locate(source, name) for name in zoo.names()]
    if not folders:
        raise ZooError(f'{str(source)!r} is neither the folder of a module '
                       f'(with a {CARD}) nor a zoo with modules.')
    return folders


def _read_all(folder: Path) -> Tuple[ModuleCard, bytes, Optional[bytes]]:
    """Return a card and the verified bytes of the module and its head."""
    card = read_card(folder)
    return card, read_module(folder, card)[0], read_head(folder, card)[0]
