# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Runs in processes of their own, each with a log and a clean memory."""

import multiprocessing
import os
import re
import sys
import warnings
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Callable, Sequence, TextIO

from rich.console import Console

from .cli import run_cli

#: Lines of a log to show while it grows.
PROGRESS = re.compile(
    r'INFO - ((?:Epoch\(|Iter\(train\)|WarmHeadHook|ScoreGatesHook|Module |'
    r'Method ).*)')
# elsewhere a fork breaks system libraries
PROCESSES = multiprocessing.get_context(
    'fork' if sys.platform == 'linux' else 'spawn')
#: Seconds that a run is given to end by itself.
_PATIENCE = 10


class RunError(RuntimeError):
    """A run failed; the sentence says where its log is."""


def run_logged(name: str,
               run: Callable[[], None],
               log: Path,
               console: Console,
               libraries: Sequence[str] = ()) -> None:
    """Run something in a process of its own, showing its progress.

    It starts with a clean peak of memory; the process that calls must not
    have used torch. An interrupt ends the run before this returns.

    Args:
        name (str): What it is called in messages.
        run (Callable): What to do; one that can be pickled.
        log (Path): File for all it prints; its folder is made.
        console (Console): Where lines of interest are shown.
        libraries (Sequence[str]): What it needs; a fork finds it imported,
            which takes seconds. Defaults to none.

    Raises:
        RunError: If it fails; its log stays where the sentence says.
    """
    for library in libraries:
        with suppress(ImportError):  # it is missed where it is needed
            import_module(library)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    log.touch()
    process = PROCESSES.Process(target=_logged, args=(run, log))
    process.start()
    try:
        with log.open() as file:
            while process.is_alive():
                process.join(timeout=0.2)
                _show_progress(file, console)
    finally:
        if process.is_alive():  # an interrupt reaches it, too
            process.join(timeout=_PATIENCE)
            process.terminate()
            process.join()
    if process.exitcode:
        tail = ''.join(log.read_text().splitlines(keepends=True)[-12:])
        raise RunError(
            f'{name} failed; its log is {log} and ends with:\n{tail}')


def _logged(run: Callable[[], None], log: Path) -> None:
    """Run in this process, all it prints going to ``log``."""
    warnings.simplefilter('ignore')
    # it stays open: a traceback is the last that is printed
    file = log.open('a', buffering=1)
    for stream in (1, 2):
        os.dup2(file.fileno(), stream)
    sys.stdout = sys.stderr = file
    run_cli(run)


def _show_progress(file: TextIO, console: Console) -> None:
    """Print what is new in a log and of interest."""
    for line in file:
        shown = PROGRESS.search(line)
        if shown:
            console.print('   ' + shown[1][:110], style='dim', markup=False)
