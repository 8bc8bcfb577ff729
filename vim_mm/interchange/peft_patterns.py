# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Patterns of layers in PEFT's configuration, matched in bounded time.

PEFT takes any regular expression, and some match for hours. Here they are
read as far as names of layers need them, and a name is matched in one pass.
"""

import re
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Set, Tuple

from vim_mm.utils.messages import short
from vim_mm.zoo.card import ZooError

#: Characters of a pattern, and steps that all matches together may take.
LENGTH, STEPS = 300, 2_000_000
_ITEM = re.compile(
    r'(?P<char>\[\^?[\w.\\-]+\]|\\[dDwWsS.\-]|[\w.-])(?P<times>[*+?]?)',
    re.ASCII)
_NAME = re.compile(r'(?:[\w-]|\\?\.)+', re.ASCII)


class Item(NamedTuple):
    """One character of a name.

    Attributes:
        fits (Callable): Whether a character is it.
        optional (bool): Whether it may be missing.
        repeats (bool): Whether more of them may follow.
    """
    fits: Callable[[str], Any]
    optional: bool
    repeats: bool


#: A row of characters, and whether the name begins with it.
Branch = Tuple[List[Item], bool]


class Patterns:
    """Values by patterns, of which a layer takes the first that it ends in.

    Args:
        values (Mapping[str, Any]): By pattern: a name, in which a dot is a
            dot, or characters, classes such as ``\\d`` and ``[0-9]``, and
            ``*``, ``+``, ``?`` and ``|`` between them.

    Raises:
        ZooError: If a pattern is anything else.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = list(values.values())
        self.names: Dict[str, int] = {}
        self.branches: Dict[int, List[Branch]] = {}
        self.steps = STEPS
        for order, pattern in enumerate(values):
            if _NAME.fullmatch(pattern):
                self.names.setdefault(pattern.replace('\\.', '.'), order)
            else:
                self.branches[order] = _read(pattern)

    def find(self, name: str, default: Any) -> Any:
        """The value of a layer.

        Raises:
            ZooError: If it takes too long.
        """
        starts = [0, *(i + 1 for i, char in enumerate(name) if char == '.')]
        found = [
            self.names[name[start:]] for start in starts
            if name[start:] in self.names
        ]
        found += [
            order for order, branches in self.branches.items()
            if any(self._ends_in(name, *branch) for branch in branches)
        ]
        return self.values[min(found)] if found else default

    def _ends_in(self, name: str, items: List[Item], first: bool) -> bool:
        """Whether a name, or an end of it after a dot, is a branch.

        All items that it may have come to are kept at once.
        """
        places: Set[int] = set()
        for index, char in enumerate(name):
            if not index or (name[index - 1] == '.' and not first):
                places |= _reached({0}, items)
            self.steps -= len(places) + 1
            if self.steps < 0:
                raise ZooError('its alpha_pattern takes too long to match: '
                               'name layers in full.')
            fitting = [
                place for place in places
                if place < len(items) and items[place].fits(char)
            ]
            places = _reached(
                {place + 1 for place in fitting} |
                {place for place in fitting if items[place].repeats}, items)
        return len(items) in places


def _reached(places: Set[int], items: List[Item]) -> Set[int]:
    """These items and those behind what may be missing."""
    found = set(places)
    for place in places:
        while place < len(items) and items[place].optional:
            place += 1
            found.add(place)
    return found


def _read(pattern: str) -> List[Branch]:
    branches = []
    for text in pattern.split('|'):
        items: List[Item] = []
        first = text.startswith('^')
        rest = text.removeprefix('^').removesuffix('$')
        try:
            while rest and len(pattern) <= LENGTH:
                match = _ITEM.match(rest)
                times = match['times']
                items.append(
                    Item(
                        re.compile(match['char']).fullmatch, times
                        in ('*', '?'), times in ('*', '+')))
                rest = rest[match.end():]
        except (TypeError, re.error):
            items = []
        if not items or rest:
            raise ZooError(
                f'its alpha_pattern {short(pattern)} is no regular '
                'expression, or one of more than characters, classes such as '
                '\\d, and *, +, ? and | between them: name layers in full.')
        branches.append((items, first))
    return branches
