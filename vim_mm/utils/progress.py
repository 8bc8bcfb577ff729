# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""How far something is that takes minutes before a run begins to log."""

import sys
import time
from typing import Iterable, Iterator, List, TypeVar

from mmengine.dist import is_main_process
from mmengine.logging import print_log
from rich import progress
from rich.console import Console

#: Seconds between two lines where there is no terminal.
SECONDS = 10

Item = TypeVar('Item')
#: What is shown now: of bars, a terminal takes one.
_shown: List[str] = []


def track(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """Go through items and show on stderr how far it is.

    On a terminal a bar stands there meanwhile; elsewhere a line is logged
    about every ten seconds, so that what is quick says nothing. Of several
    processes the first one speaks, and of one such thing inside another the
    outer one.

    Args:
        items (Iterable): What to go through.
        what (str): What is being done, for people.
        total (int): How many items there are.
    """
    if not is_main_process() or _shown:
        yield from items
        return
    _shown.append(what)
    try:
        if sys.stderr.isatty():
            yield from progress.track(
                items, what, total, console=Console(stderr=True),
                transient=True)  # yapf: disable
        else:
            yield from _logged(items, what, total)
    finally:
        _shown.remove(what)


def _logged(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    start = said = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - said >= SECONDS:
            said = now
            left = (now - start) / done * (total - done)
            print_log(f'{what}: {done}/{total}, {left:.0f} s left', 'current')
        yield item
