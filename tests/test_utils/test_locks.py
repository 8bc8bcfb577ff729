# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A lock is free once it is released, though the system fails to unlock."""

import errno
import fcntl
import os
from typing import Any

import filelock
import pytest

from vim_mm.utils.locks import Lock


@pytest.fixture(params=[errno.EIO, errno.ENOLCK, errno.ESTALE])
def unlocks_nothing(request, monkeypatch) -> None:
    real = fcntl.flock

    def flock(handle: Any, operation: int) -> None:
        if operation == fcntl.LOCK_UN:
            raise OSError(request.param, os.strerror(request.param))
        real(handle, operation)

    monkeypatch.setattr(fcntl, 'flock', flock)


@pytest.mark.parametrize('how', ['release', 'with', 'error'])
def test_it_is_free_afterwards(tmp_path, unlocks_nothing, how):
    lock = Lock(str(tmp_path / 'lock'))
    handles = len(os.listdir('/proc/self/fd'))
    if how == 'release':
        lock.acquire()
        lock.release()
    elif how == 'with':
        with lock:
            assert lock.is_locked
    else:
        with pytest.raises(KeyError, match='what went wrong'), lock:
            raise KeyError('what went wrong')
    assert not lock.is_locked
    assert len(os.listdir('/proc/self/fd')) == handles
    with open(tmp_path / 'lock') as file:  # as another process does
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(filelock.Timeout):
            lock.acquire(timeout=0)
    lock.acquire(timeout=0)
    assert lock.is_locked
