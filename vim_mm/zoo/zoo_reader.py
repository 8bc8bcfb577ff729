# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A directory of modules, as it is read and checked."""

import os
import warnings
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import (Callable, Dict, List, Mapping, Optional, Tuple, TypeVar,
                    Union)

from torch import Tensor

from vim_mm.utils.messages import LINES, short
from vim_mm.utils.reading import OpenFolder
from . import files
from .card import ModuleCard, ZooError, check_name, is_name
from .fingerprint import check_trunk
from .folder import (CARD, MODULE, InvalidModule, check_all, named_card,
                     read_head, read_module)

#: Names of a zoo that a wrong one is compared to, which takes a while.
COMPARED = 10_000
Read = TypeVar('Read')


class NoModule(ZooError):
    """There was no module of a name when it was looked for.

    It may have come since, so this is no word on one that is there.
    """


class ZooReader:
    """A directory with one folder per module, for those who read it.

    A reader sees the old or the new version of a module, whole.

    Args:
        root: The directory.
    """

    check_trunk = staticmethod(check_trunk)

    def __init__(self, root: Union[str, Path]) -> None:
        self.root = Path(os.path.expanduser(root))

    def __repr__(self) -> str:
        return f'Zoo({str(self.root)!r})'

    def __contains__(self, name: object) -> bool:
        return is_name(name) and files.is_folder(self.root, name)

    def names(self) -> List[str]:
        """Return the names of all modules, sorted, unreadable ones included.

        Raises:
            ZooError: If the directory does not exist or cannot be read.
        """
        return [
            name for name in self._listed() if is_name(name)
            and files.holds_any(self.root, name, (CARD, MODULE))
        ]

    def _listed(self) -> List[str]:
        try:
            return files.names_in(self.root)
        except (FileNotFoundError, NotADirectoryError):
            raise ZooError(
                f'There is no zoo at {str(self.root)!r}: the directory does '
                'not exist. Set `model.backbone.zoo` to the right one, or '
                'learn a module first (a midstream config).') from None
        except OSError as error:
            raise ZooError(f'The zoo {str(self.root)!r} cannot be read '
                           f'({error.strerror}).') from None

    def misnamed(self) -> Dict[str, str]:
        """Folders of modules that nothing can name, each with the reason.

        Such as 'boats (copy)', or what another system has made of a name.

        Raises:
            ZooError: If the directory does not exist or cannot be read.
        """
        found = {}
        for name in self._listed():
            if not is_name(name) and files.holds_any(self.root, name,
                                                     (CARD, MODULE)):
                try:
                    check_name(name)
                except ZooError as error:
                    found[short(name)] = f'{error} Rename its folder.'
        return found

    def card(self, name: str) -> ModuleCard:
        """Return the card of a module.

        Raises:
            ZooError: If there is no such module or its card is invalid.
        """
        return self._read(name, lambda folder: named_card(folder, name))

    def cards(self,
              problems: Optional[Dict[str, str]] = None) -> List[ModuleCard]:
        """Return all cards, sorted by name.

        Args:
            problems: Takes what is wrong with modules whose card cannot be
                read, by name. A warning says it when None.
        """
        found, bad = [], {}
        for name in self.names():
            try:
                found.append(self.card(name))
            except NoModule:
                continue  # it was removed meanwhile
            except ZooError as error:
                if name in self:  # else so was this one
                    bad[name] = str(error)
        bad.update(self.misnamed())
        tell(bad, problems)
        return found

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
        def read(folder: OpenFolder) -> Tuple[ModuleCard, Dict[str, Tensor]]:
            card = named_card(folder, name)
            return card, read_module(folder, card)[1]

        return self._read(name, read)

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
        _, head = self._read(
            name, lambda folder: read_head(folder, named_card(folder, name)))
        if head is None:
            raise ZooError(f'Module {name!r} was saved without a task head.')
        return head

    def verify(self, name: Optional[str] = None) -> List[str]:
        """Find errors in a module, or in all of them.

        Args:
            name: The module; all when None.

        Returns:
            One sentence per problem; empty if all is well.

        Raises:
            ZooError: If there is no such module or zoo.
        """
        if name is not None:
            return self._problems(name)
        problems = []
        for each in self.names():
            try:
                problems += self._problems(each)
            except ZooError:
                continue  # it was removed meanwhile
        return problems + list(self.misnamed().values())

    def _problems(self, name: str) -> List[str]:
        self._demand(name)
        try:
            self._read(name, lambda folder: check_all(folder, name))
        except InvalidModule as error:
            return error.problems
        except NoModule:
            raise
        except ZooError as error:
            if name not in self:
                raise self._unknown(name) from None
            return [str(error)]
        return []

    def _read(self, name: str, read: Callable[[OpenFolder], Read]) -> Read:
        """What is read of one version of a module."""
        try:
            return files.read_version(self.root, check_name(name), read)
        except FileNotFoundError:
            raise self._unknown(name) from None

    def _demand(self, name: str) -> None:
        check_name(name)
        if name not in self:
            raise self._unknown(name)

    def _unknown(self, name: str) -> NoModule:
        names = self.names()
        near = get_close_matches(name, names[:COMPARED], cutoff=0.5)
        hint = (f'did you mean {" or ".join(near)}?' if near else
                f'it holds: {", ".join(names[:20]) or "no module yet"}.')
        return NoModule(f'The zoo {str(self.root)!r} has no module {name!r}; '
                        f'{hint}')


def tell(bad: Mapping[str, str], problems: Optional[Dict[str, str]]) -> None:
    """Hand on what is wrong with modules, or warn of it, a line each."""
    if problems is not None:
        problems.update(bad)
        return
    for name, problem in islice(bad.items(), LINES):
        warnings.warn(f'{name}: {problem}', stacklevel=3)
    if len(bad) > LINES:
        warnings.warn(f'{len(bad) - LINES:,} more are not valid.',
                      stacklevel=3)
