# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Zoos that lie among much else, and that hold much that is bad."""

import json
from pathlib import Path
from typing import Callable, Dict

from _hostile import ESCAPE, IN_PLACE, JSON_FILES, put

CARD = 'card.json'


def crowd(root: Path, number: int) -> None:
    """Put files and folders that are no modules into a zoo, half of each."""
    for index in range(number // 2):
        (root / f'image{index}.jpg').touch()
        (root / f'folder{index}').mkdir()


def _write(data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / CARD).write_bytes(data)


#: What makes a folder a bad module, by name.
BAD: Dict[str, Callable[[Path], None]] = {
    **{f'card_is_{what}': lambda folder, what=what: put(folder / CARD, what)
       for what in IN_PLACE if what != 'nothing'},
    **{f'card_{what}': _write(data) for what, data in JSON_FILES.items()},
    'card_of_values': _write(
        json.dumps(dict.fromkeys(map(str, range(250_000)))).encode()),
    'card_of_text': _write(json.dumps(dict(name='x' * 900_000)).encode()),
    'card_of_another': _write(json.dumps(dict(name=ESCAPE)).encode()),
}
#: Names of folders that no module may have.
MISNAMED = ('boats (copy)', 'a\x1b[31mb', 'line\nbreak', 'x' * 200, 'ü' * 90)


def spoil(root: Path, misnamed: bool = True) -> int:
    """Put all that is bad into a zoo; how many folders that are."""
    for name, make in BAD.items():
        (root / name).mkdir()
        make(root / name)
    for name in MISNAMED if misnamed else ():
        (root / name).mkdir()
        (root / name / CARD).write_text('{}')
    return len(BAD) + (len(MISNAMED) if misnamed else 0)
