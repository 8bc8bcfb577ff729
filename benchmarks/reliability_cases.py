# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What all rows of ``reliability.py`` share: counting, and child processes."""

import os
import random
import signal
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Sequence, TypeVar

from _hostile import judged

Case = TypeVar('Case')
#: Seconds after which a case is given up.
PATIENCE = 60
#: Exit code of a child that dies on purpose.
DEATH = 77


@dataclass
class Tally:
    """Cases of one kind.

    Attributes:
        tried (int): How many there were.
        failed (list[str]): What is wrong with those that ended badly.
        lost (list[str]): What was lost.
    """
    tried: int = 0
    failed: List[str] = field(default_factory=list)
    lost: List[str] = field(default_factory=list)

    @contextmanager
    def case(self, what: str, size: int = 0) -> Iterator[None]:
        """One case: what is done within must end well, or in our error."""
        self.tried += 1
        with warnings.catch_warnings(), patience():
            warnings.simplefilter('ignore')
            with judged(size) as verdict:
                yield
        if verdict.problem:
            self.failed.append(f'{what}: {verdict.problem}')

    def check(self, what: str, holds: bool) -> None:
        """One more case, of which a statement must hold."""
        self.tried += 1
        if not holds:
            self.failed.append(what)

    def keep(self, what: str, holds: bool) -> None:
        """What was whole before must be whole."""
        self.tried += 1
        if not holds:
            self.lost.append(what)


@dataclass(frozen=True)
class Campaign:
    """A row.

    Attributes:
        name (str): What is tried.
        run (Callable): Does it: takes the tally, an empty folder, which share
            of the cases to try, and a seed.
    """
    name: str
    run: Callable[[Tally, Path, float, int], None]


def some(cases: Sequence[Case], share: float,
         rng: random.Random) -> List[Case]:
    """A share of the cases, drawn, in their order; at least a few."""
    number = max(min(3, len(cases)), round(share * len(cases)))
    return [cases[i] for i in sorted(rng.sample(range(len(cases)), number))]


@contextmanager
def patience(seconds: int = PATIENCE) -> Iterator[None]:
    """Give up what takes for ever."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f'it took more than {seconds} s')

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def forked(action: Callable[[], Optional[int]]) -> int:
    """Start something in a child; its process id."""
    child = os.fork()
    if child == 0:
        code = 9
        try:
            code = action() or 0
        finally:
            os._exit(code)
    return child


def joined(child: int) -> int:
    """Wait for a child; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(step: int, action: Callable[[], object]) -> bool:
    """Run something in a child that dies before its n-th file operation.

    Returns:
        bool: Whether it died, i.e. had as many operations.
    """

    def mortal() -> int:
        count = iter(range(10**6))

        def watched(function: Callable) -> Callable:

            def call(*args: object, **kwargs: object) -> object:
                if next(count) == step:
                    os._exit(DEATH)
                return function(*args, **kwargs)

            return call

        for name in ('replace', 'fsync', 'unlink', 'rmdir', 'mkdir', 'chmod',
                     'open', 'close'):
            setattr(os, name, watched(getattr(os, name)))
        action()
        return 0

    code = joined(forked(mortal))
    if code not in (0, DEATH):
        raise RuntimeError(f'the child ended with {code}')
    return code == DEATH


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A file after something has happened to it."""
    changed, size = bytearray(data), len(data)
    start = rng.randrange(size)
    length = min(size - start, 1 << rng.randrange(14))
    kind = rng.randrange(6)
    if kind == 0:  # the disk was full
        return data[:start]
    if kind == 1:  # a block was never written
        changed[start:start + length] = bytes(length)
    elif kind == 2:  # a few bits fell over
        for _ in range(rng.randrange(1, 9)):
            changed[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif kind == 3:  # another file's block
        changed[start:start + length] = rng.randbytes(length)
    elif kind == 4:  # a part is missing
        del changed[start:start + length]
    else:  # a part is there twice
        changed[start:start] = changed[start:start + length]
    return bytes(changed)
