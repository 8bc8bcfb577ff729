# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""How the tools end: one sentence for a user's mistake, no traceback."""

import os
import signal
import sys
import traceback
from typing import Callable, Optional

from rich.console import Console

TRACEBACK_ENV = 'VIM_MM_TRACEBACK'
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run_cli(main: Callable[[], Optional[int]]) -> None:
    """Run a tool's ``main`` and leave the process with its exit code.

    A user's mistake ends with code 1 and one sentence on stderr: a missing
    file, an exception class of vim_mm, or a ValueError raised in vim_mm or in
    the tool itself. Setting ``VIM_MM_TRACEBACK=1`` brings the traceback back.
    Ctrl-C ends with 130. Other exceptions are bugs and keep their traceback.

    Args:
        main: Does the work; returns an exit code, or None for 0.
    """
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print('Interrupted.', file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if os.environ.get(TRACEBACK_ENV) == '1' or not is_user_error(error):
            raise
        print(
            f'Error: {error} ({TRACEBACK_ENV}=1 shows the traceback.)',
            file=sys.stderr)
        sys.exit(1)


def _nobody_reads() -> bool:
    """Whether whoever read stdout, such as `head`, has seen enough."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def table_console() -> Console:
    """For tables on stdout, which stay legible in a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else 120)


def is_user_error(error: Exception) -> bool:
    """Whether ``error`` is about the user's input rather than a bug."""
    ours = type(error).__module__.split('.')[0] == 'vim_mm'
    if ours or isinstance(error, FileNotFoundError):
        return True
    if not isinstance(error, ValueError):
        return False
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    tool_dir = os.path.dirname(os.path.abspath(sys.argv[0]))
    return os.path.abspath(raised_in).startswith(
        (_PACKAGE + os.sep, tool_dir + os.sep))
