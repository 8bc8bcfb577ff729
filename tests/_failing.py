# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""File operations that fail: a disk is full, a server does not answer."""

import builtins
import errno
import io
import os
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, Callable, Iterator
from unittest import mock

#: What disks and servers of files answer.
ERRORS = [
    getattr(errno, name)
    for name in ('ENOSPC', 'EDQUOT', 'EIO', 'EROFS', 'ESTALE', 'EAGAIN',
                 'EACCES', 'ENOTEMPTY', 'EBUSY')
]
OF_SYSTEM = ('open', 'replace', 'fsync', 'mkdir', 'rmdir', 'unlink', 'chmod',
             'stat', 'fstat', 'lstat', 'listdir', 'scandir')
OF_FILES = ('read', 'write', 'flush')


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


@contextmanager
def failing(step: int, error: int) -> Iterator[SimpleNamespace]:
    """Within this context the n-th file operation fails.

    Args:
        step (int): Its number, from 0.
        error (int): Its error, of :data:`ERRORS`.

    Yields:
        SimpleNamespace: ``failed`` is the operation; None if there were not
        as many.
    """
    found, numbers = SimpleNamespace(failed=None), iter(range(10**9))

    def mortal(name: str, function: Callable) -> Callable:

        def call(*args: Any, **kwargs: Any) -> Any:
            if next(numbers) == step:
                found.failed = name
                raise OSError(error, os.strerror(error))
            return function(*args, **kwargs)

        return call

    opens = mortal('open a file', io.open)

    def open_file(*args: Any, **kwargs: Any) -> _File:
        file = opens(*args, **kwargs)
        return _File(
            file, **{
                name: mortal(name, getattr(file, name))
                for name in OF_FILES
            })

    with ExitStack() as stack:
        for name in OF_SYSTEM:
            stack.enter_context(
                mock.patch.object(os, name, mortal(name, getattr(os, name))))
        for module in (builtins, io):  # pathlib calls the latter
            stack.enter_context(mock.patch.object(module, 'open', open_file))
        yield found
