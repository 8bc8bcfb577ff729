# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a run's folder holds wherever the run may be killed."""

import os
import shutil
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Iterator, List, Optional, Tuple

import torch

from _runs import validation
from vim_mm.engine.resume import choose_checkpoint
from vim_mm.engine.stopping import Stop
from vim_mm.utils.checksum import is_intact


class States:
    """What a folder holds before each change to a file in it.

    A process that is killed leaves one of these states. Beside them there is
    one in which a file is empty, for each file that is opened to be written.
    """

    #: What Python calls before it changes a file.
    EVENTS = ('open', 'os.rename', 'os.remove', 'os.rmdir', 'os.truncate')
    watching: Optional['States'] = None

    def __init__(self, folder: Path, copies: Path) -> None:
        self.folder = folder
        self.copies = copies
        self.count = 0
        self.busy = False

    def __call__(self, event: str, args: tuple) -> None:
        if self.busy or event not in self.EVENTS:
            return
        path = Path(os.fsdecode(args[0])) if isinstance(
            args[0], (str, bytes, os.PathLike)) else None
        if path is None or path.parent != self.folder:
            return
        is_opened = event == 'open'
        if is_opened and not args[2] & (os.O_WRONLY | os.O_RDWR):
            return
        self.busy = True
        copy = self._copy()
        if is_opened and args[2] & os.O_TRUNC:
            copy = self._copy()
            (copy / path.name).write_bytes(b'')
        self.busy = False

    def _copy(self) -> Path:
        copy = self.copies / f'{self.count:04}'
        self.count += 1
        copy.mkdir(parents=True)
        for path in self.folder.iterdir():
            if path.is_file():
                shutil.copy2(path, copy)
        return copy


def _on_event(event: str, args: tuple) -> None:
    if States.watching is not None:
        States.watching(event, args)


@cache
def _listen() -> None:
    sys.addaudithook(_on_event)  # it can never be taken away


def states_of(folder: Path, work: Callable[[], Any]) -> List[Path]:
    """All states of a folder while something works in it."""
    _listen()
    copies = folder.parent / 'states'
    States.watching = States(folder, copies)
    try:
        work()
    finally:
        States.watching = None
    return sorted(copies.iterdir())


def step_of(path: Path) -> int:
    """The step after which a checkpoint was written."""
    return torch.load(path, weights_only=False)['meta']['iter']


def judged(states: List[Path]) -> Iterator[Tuple[Path, int, str]]:
    """Look for what is lost in the states of a run, in their order.

    Yields:
        tuple[Path, int, str]: A state, the step of its newest complete
        checkpoint, and what it has lost of the states before it, or what
        resuming does not find in it; '' if nothing.
    """
    newest, best = 0, 0
    for state in states:
        whole = [path for path in state.glob('*.pth') if is_intact(path)]
        steps, bests = ([
            step_of(path) for path in whole
            if path.name.startswith('best') is wanted
        ] for wanted in (False, True))
        step, problem = max(steps, default=0), ''
        if step < newest:
            problem = f'the newest is of step {step}, and was of {newest}'
        elif max(bests, default=0) < best:
            problem = f'the best of step {best} is gone'
        elif step and _resumed_at(state) != step:
            problem = f'the newest is of step {step}, and is not taken'
        newest, best = max(newest, step), max([best, *bests])
        yield state, step, problem


def _resumed_at(state: Path) -> int:
    run = SimpleNamespace(
        work_dir=str(state),
        hooks=[],
        _has_loaded=False,
        _resume=True,
        _load_from=None)
    choose_checkpoint(run)
    return step_of(run._load_from)


def rises(evaluator: Any, size: int) -> dict:
    """An accuracy that is better each time."""
    return dict(acc=float(Stop.current.runner.iter))


def best(**kwargs: Any) -> dict:
    """Checkpoints of which few are kept, and the best of them."""
    hook = dict(save_best='auto', rule='greater')
    return dict(checkpoint=dict(hook, **kwargs), **validation())
