# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""File operations that fail, or at which a process is killed.

A disk is full, a server of files does not answer.
"""

import builtins
import errno
import fcntl
import io
import os
import signal
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, Callable, Iterator, Optional, Sequence
from unittest import mock

#: What disks and servers of files answer.
ERRORS = [
    getattr(errno, name)
    for name in ('ENOSPC', 'EDQUOT', 'EIO', 'EROFS', 'ESTALE', 'EAGAIN',
                 'EACCES', 'ENOTEMPTY', 'EBUSY')
]
CHANGES = ('open', 'replace', 'fsync', 'mkdir', 'rmdir', 'unlink', 'chmod')
OF_SYSTEM = (*CHANGES, 'stat', 'fstat', 'lstat', 'listdir', 'scandir')
OF_FILES = ('read', 'write', 'flush')
#: Of many writes into one file these differ: before the first, and after it.
WRITES = 3


class _File:
    """An open file some of whose methods are others."""

    def __init__(self, file: Any, **methods: Callable) -> None:
        self._file = file
        vars(self).update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> '_File':
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()


def failing(step: int, error: int) -> Any:
    """Within this context the n-th file operation fails.

    Args:
        step (int): Its number, from 0.
        error (int): Its error, of :data:`ERRORS`.

    Yields:
        SimpleNamespace: ``failed`` is the operation; None if there were not
        as many.
    """

    def fail(path: Optional[str], name: str) -> None:
        # what says that another process has a lock is no failure
        number = errno.ENOLCK if name == 'flock' else error
        raise OSError(number, os.strerror(number), path)

    return _at_operation(step, fail)


def killed(step: int, action: Callable[[], Any]) -> bool:
    """Do something in a child that is killed before its n-th change of files.

    Returns:
        bool: Whether it was, i.e. had as many operations.
    """
    child = os.fork()
    if child == 0:
        code = 9
        try:
            with _at_operation(
                    step, lambda *_: os.kill(os.getpid(), signal.SIGKILL),
                    CHANGES, ('write', 'flush')):
                action()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f'the child ended with {code}')
    return code != 0


@contextmanager
def _at_operation(
        step: int,
        act: Callable[[Optional[str], str], None],
        of_system: Sequence[str] = OF_SYSTEM,
        of_files: Sequence[str] = OF_FILES) -> Iterator[SimpleNamespace]:
    """Do something before the n-th file operation, told the file and it.

    As the system does, functions that are given a name tell it.
    """
    found, numbers = SimpleNamespace(failed=None), iter(range(10**9))

    def mortal(name: str, function: Callable, named: bool = True) -> Callable:
        calls = iter(range(10**9))

        def call(*args: Any, **kwargs: Any) -> Any:
            skipped = name == 'write' and next(calls) >= WRITES
            if not skipped and next(numbers) == step:
                found.failed = name
                is_name = named and args and isinstance(
                    args[0], (str, os.PathLike))
                act(os.fspath(args[0]) if is_name else None, name)
            return function(*args, **kwargs)

        return call

    opens = mortal('open a file', io.open)

    def open_file(*args: Any, **kwargs: Any) -> _File:
        file = opens(*args, **kwargs)
        return _File(
            file, **{
                name: mortal(name, getattr(file, name), False)
                for name in of_files
            })

    with ExitStack() as stack:
        for name in of_system:
            stack.enter_context(
                mock.patch.object(os, name, mortal(name, getattr(os, name))))
        stack.enter_context(
            mock.patch.object(fcntl, 'flock', mortal('flock', fcntl.flock)))
        for module in (builtins, io):  # pathlib calls the latter
            stack.enter_context(mock.patch.object(module, 'open', open_file))
        yield found
