# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Locks that are free again once they are released, whatever comes."""

import os
from contextlib import suppress

import filelock


class Lock(filelock.FileLock):
    """A lock on a file, which one process has at a time.

    A server of files that does not answer may fail to unlock it. Then the
    file is closed, which unlocks it as well; what was done under the lock is
    done, so nothing is raised.
    """

    def _release(self) -> None:
        handle = self._context.lock_file_fd
        try:
            super()._release()
        except OSError:
            self._context.lock_file_fd = None
            with suppress(OSError):  # it has been closed
                os.close(handle)
