# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Rows: a zoo that lies among much else, and pickles that claim too much."""

import io
import random
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

from _claims import ALL, as_archive, pickles
from _crowd import crowd, spoil
from reliability_cases import Campaign, Tally, some
from reliability_zoo import save

from vim_mm.utils.checkpoint import load_from_local
from vim_mm.utils.plain_files import load_plain
from vim_mm.zoo import Zoo

#: Files and folders that are no modules.
ENTRIES = 100_000


def crowded(tally: Tally, root: Path, share: float, seed: int) -> None:
    """Look at a zoo in all ways, and change it."""
    zoo, other = Zoo(root / 'zoo'), Zoo(root / 'other')
    save(zoo, 'good')
    crowd(zoo.root, max(1000, round(ENTRIES * share)))
    bad = spoil(zoo.root)
    looks: List[Tuple[str, Callable, Callable]] = [
        ('names', zoo.names, lambda found: 'good' in found),
        ('cards', lambda: cards(zoo), lambda found: found == (1, bad)),
        ('verify', zoo.verify, lambda found: len(found) == bad),
        ('load', lambda: zoo.load('good'), bool),
        ('add', lambda: other.add(zoo.root, problems={}),
         lambda found: found == ['good']),
        ('save', lambda: save(zoo, 'new'), lambda _: 'new' in zoo),
        ('remove', lambda: zoo.remove('new'), lambda _: 'new' not in zoo)
    ]
    for what, look, holds in looks:
        found: Any = None
        with tally.case(what):
            found = look()
        tally.check(f'{what}: {str(found)[:200]}', holds(found))


def cards(zoo: Zoo) -> tuple:
    bad: Dict[str, str] = {}
    return len(zoo.cards(bad)), len(bad)


def claims(tally: Tally, root: Path, share: float, seed: int) -> None:
    """Read pickles whose lengths, or calls, ask for what is not there."""
    rng, path = random.Random(seed), root / 'x.pth'
    readers: Dict[str, Callable[[bytes], Any]] = dict(
        annotations=lambda data: load_plain(io.BytesIO(data)),
        archive=lambda data: (as_archive(path, data),
                              load_from_local(str(path))),
        old=lambda data: (path.write_bytes(data),
                          load_from_local(str(path))))
    cases = list(ALL.items())
    for protocol in (2, 4):
        cases += pickles(protocol).items()
    for what, data in some(cases, share, rng):
        for name, read in readers.items():
            with tally.case(f'{name}: {what}', len(data)):
                read(data)


CAMPAIGNS = [
    Campaign('a zoo among 100,000 other entries', crowded),
    Campaign('pickles that claim more than they hold', claims)
]
