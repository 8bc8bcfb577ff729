# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What the tools share: options, tables, and how they exit.

A user's mistake is one sentence, not a traceback.
"""

import argparse
import errno
import json
import os
import signal
import sys
import traceback
from typing import Any, Callable, NoReturn, Optional, Union

from mmengine.dist import is_distributed
from rich.console import Console

from .dist import leave_group, quit_group
from .files import shipped
from .messages import cut, printable

TRACEBACK_ENV = 'VIM_MM_TRACEBACK'
#: Characters of what an error says; what is longer loses its middle.
_SENTENCE = 4000
#: The same of a file's name.
_NAME = 300
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
#: What a place may have against a file, and what helps.
_PLACES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
                    'make room, or name another place'),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS),
                    'change its permissions, or name another place'),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.EBUSY, errno.EAGAIN,
                     errno.ETIMEDOUT, errno.ENOLCK, errno.ENXIO,
                     errno.ENODEV),
                    'check the disk, or its server, and try again'),
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR, errno.EEXIST,
                     errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP),
                    'name another place'),
}


def run_cli(main: Callable[[], Optional[int]]) -> NoReturn:
    """Run a tool's ``main`` and leave the process with its exit code.

    A user's mistake ends with code 1 and one sentence on stderr: a missing
    file or one in a place that does not take it, an exception class of
    vim_mm, or a ValueError raised in vim_mm or in the tool itself. Setting
    ``VIM_MM_TRACEBACK=1`` brings the traceback back. Ctrl-C ends with 130.
    Other exceptions are bugs and keep their traceback.

    In a distributed run the process leaves its group here: after success
    together with the other processes, otherwise without waiting for them.

    Args:
        main: Does the work; returns an exit code, or None for 0.
    """
    try:
        code = _run(main)
    except Exception as error:
        if not is_distributed():
            raise
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    if not is_distributed():
        sys.exit(code)
    if isinstance(code, str):  # as sys.exit does
        print(code, file=sys.stderr)
        code = 1
    quit_group(code or 0)


def _run(main: Callable[[], Optional[int]]) -> Union[int, str, None]:
    """The exit code of ``main``; only bugs raise."""
    try:
        code = main()
        if not code:
            leave_group()
        return code
    except SystemExit as end:
        return end.code
    except KeyboardInterrupt:
        print('Interrupted.', file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _stdout_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if os.environ.get(TRACEBACK_ENV) == '1' or not is_user_error(error):
            raise
        print(
            f'Error: {_sentence(error)} ({TRACEBACK_ENV}=1 shows the '
            'traceback.)',
            file=sys.stderr)
        return 1


def _sentence(error: Exception) -> str:
    """What an error says, without the traceback of a loader's process."""
    said = str(error)
    name = str(getattr(error, 'filename', None))
    if _is_of_place(error):
        said = (f"'{cut(name, _NAME)}' cannot be read or written: "
                f'{error.strerror}; {_PLACES[error.errno]}.')
    elif len(name) > _NAME:
        said = f"{error.strerror}: '{cut(name, _NAME)}'"
    if said.startswith('Caught ') and 'worker process' in said:
        said = said.rstrip().splitlines()[-1].partition(': ')[2] or said
    return cut(printable(said, '\n\t'), _SENTENCE)


def _is_of_place(error: Exception) -> bool:
    """Whether a file could not be read or written because of where it is."""
    return (isinstance(error, OSError) and error.errno in _PLACES
            and error.filename is not None)


def _stdout_closed() -> bool:
    """Whether the reader of stdout, such as `head`, has closed it."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def add_experts_per_token(parser: argparse.ArgumentParser) -> None:
    """Add ``--k``: a number, or numbers by patterns of layers' names."""
    parser.add_argument(
        '--k',
        action=_ExpertsPerToken,
        help="experts per token (default: as trained); or 'PATTERN=2', "
        'several times, of which the first that matches a layer counts')


class _ExpertsPerToken(argparse.Action):
    """``--k 2`` as 2; ``--k A=1 --k B=3`` as a dict."""

    def __call__(self,
                 parser: argparse.ArgumentParser,
                 namespace: argparse.Namespace,
                 value: str,
                 option_string: Optional[str] = None) -> None:
        before = getattr(namespace, self.dest)
        pattern, is_pattern, number = value.rpartition('=')
        if not number.lstrip('-').isdecimal():
            parser.error(f'argument --k: {value!r} is neither a number nor '
                         "'PATTERN=NUMBER'")
        more = is_pattern and isinstance(before, dict)
        if before is not None and not more:
            parser.error('argument --k: give one number, or patterns alone')
        k = {**(before or {}), pattern: int(number)} if is_pattern \
            else int(number)
        setattr(namespace, self.dest, k)


def table_console() -> Console:
    """A console for tables on stdout, wide enough in a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else 120)


def print_json(value: Any) -> None:
    """Print JSON, in ASCII where a terminal would obey what is in it."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if text != printable(text):
        text = json.dumps(value, indent=2)
    print(text)


def visible(value: Any, limit: int = 1000) -> str:
    """One line of a stranger's text, for a terminal."""
    return cut(printable(str(value), keep=''), limit)


def is_user_error(error: Exception) -> bool:
    """Whether ``error`` is about the user's input rather than a bug."""
    ours = type(error).__module__.split('.')[0] == 'vim_mm'
    if (ours or isinstance(error, FileNotFoundError)
            or _is_of_place(error)):
        return True
    if not isinstance(error, ValueError):
        return False
    raised_in = os.path.abspath(
        traceback.extract_tb(error.__traceback__)[-1].filename)
    script_dir = os.path.dirname(os.path.abspath(sys.argv[0]))
    own = (_PACKAGE, str(shipped('tools')), script_dir)
    folder = next((f for f in own if raised_in.startswith(f + os.sep)), None)
    # an environment may lie in the folder of the user's script
    return folder is not None and 'site-packages' not in raised_in[
        len(folder):].split(os.sep)
