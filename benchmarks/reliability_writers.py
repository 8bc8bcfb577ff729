# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Rows: all else that writes is killed, or a file operation of it fails."""

import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Callable

from _failing import ERRORS, failing, killed
from _writers import FIRST, SECOND, WRITERS, Writer
from reliability_cases import Campaign, Tally

#: What is said of a change that was made, but for the last flush.
MADE = 'a power cut may undo'


def interrupted(interrupt: Callable[..., bool], tally: Tally, root: Path,
                share: float, seed: int) -> None:
    """Interrupt each writer at every step; see what is there, and go on.

    Args:
        interrupt (Callable): Does it, and returns whether there are as many
            steps.
    """
    rng, every = random.Random(seed), max(1, round(1 / share))
    for name, make in WRITERS.items():
        home = root / name
        home.mkdir()
        writer = make(home)
        for step in range(seed % every, 10**6, every):
            folder = root / f'{name} {step}'
            folder.mkdir()
            if writer.first:
                writer.write(folder, FIRST)
            what = f'{name} at {step}'
            was = interrupt(tally, what, writer, folder, step, rng)
            go_on(tally, what, writer, folder)
            shutil.rmtree(folder)
            if not was:
                break


def kill(tally: Tally, what: str, writer: Writer, folder: Path, step: int,
         rng: random.Random) -> bool:
    """SIGKILL before a change of a file."""
    return killed(step, lambda: writer.write(folder, SECOND))


def fail(tally: Tally, what: str, writer: Writer, folder: Path, step: int,
         rng: random.Random) -> bool:
    """A file operation fails; what is said of it is so."""
    error, said = rng.choice(ERRORS), ''
    with tally.case(f'{what} fails with {error}'), failing(step,
                                                           error) as end:
        try:
            writer.write(folder, SECOND)
        except Exception as raised:
            said = str(raised)
            raise
    made = not said or MADE in said
    if not said or not writer.many:
        tally.check(f'{what} fails with {error}, and says {said!r}',
                    (version(writer, folder) == SECOND) == made)
    return end.failed is not None


def go_on(tally: Tally, what: str, writer: Writer, folder: Path) -> None:
    """The first version or the second is there; the same again tidies up."""
    found = version(writer, folder)
    tally.keep(f'{what}: version {found}', found in (writer.first, SECOND))
    if found != SECOND or writer.repeats:
        try:
            writer.write(folder, SECOND)
        except Exception as error:
            found = repr(error)
        else:
            found = version(writer, folder)
    tally.check(f'{what}, again: version {found}', found == SECOND)
    left = hidden(folder)
    tally.check(f'{what}, again: left {left}', not left)


def version(writer: Writer, folder: Path) -> Any:
    """The version that is there, or what is wrong with it."""
    try:
        return writer.read(folder)
    except Exception as error:
        return repr(error)


def hidden(folder: Path) -> list:
    """What is left at any depth under names that are not the final ones."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob('.*')
        if path.suffix != '.lock' and path.name != '.lock')


CAMPAIGNS = [
    Campaign('all that writes is killed at every file operation',
             partial(interrupted, kill)),
    Campaign('a file operation of all that writes fails',
             partial(interrupted, fail))
]
