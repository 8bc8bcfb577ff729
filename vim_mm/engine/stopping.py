# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Signals that ask a run to stop, and how its processes stop together.

A handler only notes the signal. The run looks at it where it can stop: after
a step, after a batch of validation, and between the steps of hooks that
prepare a training. There all processes learn of a signal to any of them.
"""

import os
import signal
import threading
import time
from contextlib import contextmanager
from functools import cache
from typing import Callable, Iterator, NoReturn, Optional, Set

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.runner import Runner
from torch.distributed import distributed_c10d

#: Exit code of a run that was asked to stop: EX_TEMPFAIL, "try again".
EXIT_CODE = 75
SIGNALS = ('SIGTERM', 'SIGHUP')
#: Numbers of those that a run of this process handles.
_handled: Set[int] = set()
_SECONDS = 1.


class Stopped(SystemExit):
    """A run has stopped as a signal asked; ``--resume`` goes on with it."""


class Stop:
    """Whether a run shall stop.

    Args:
        runner (Runner): The run.
    """

    #: That of the run which is training in this process.
    current: Optional['Stop'] = None
    #: Runs so far, the same in all processes.
    count = 0

    def __init__(self, runner: Runner) -> None:
        Stop.count += 1
        self.key = f'vim_mm/stop/{Stop.count}'
        self.runner = runner
        self.name: Optional[str] = None
        #: Until the first step nothing can be lost.
        self.is_preparing = True
        self._looked = 0.

    def note(self, number: int, *_: object) -> None:
        """Handle a signal.

        Raises:
            Stopped: If this process is alone and prepares a training.
        """
        self.name = signal.Signals(number).name
        self._looked = 0.
        if self.is_preparing and get_world_size() == 1:
            self.end()

    def is_asked(self) -> bool:
        """Whether this process knows of a signal to any of them.

        Others may know of it earlier or later, so this alone is no reason
        to stop.
        """
        if get_world_size() > 1 and time.monotonic() - self._looked > _SECONDS:
            self._looked = time.monotonic()
            store = distributed_c10d._get_default_store()
            if self.name is not None:
                store.set(self.key, self.name)
            elif store.check([self.key]):
                self.name = store.get(self.key).decode()
        return self.name is not None

    def meet(self) -> bool:
        """Whether all stop here; every process must call it as often."""
        asked = self.name is not None
        if get_world_size() == 1:
            return asked
        flag = torch.tensor(float(asked))
        all_reduce(flag, op='max')
        if flag and not asked:
            self.name = 'a signal to another process'
        return bool(flag)

    def end(self) -> NoReturn:
        """Stop before the first step.

        Raises:
            Stopped: Always.
        """
        self.runner.logger.warning(
            f'Stopped by {self.name} before the first step, so nothing is '
            f'lost; start again. Exit code {EXIT_CODE}.')
        raise Stopped(EXIT_CODE)


@contextmanager
def stoppable(runner: Runner) -> Iterator[None]:
    """Within this context signals ask a run to stop.

    Those that the user has handlers for, or ignores (``nohup``), stay as
    they are.

    Args:
        runner (Runner): The run.
    """
    stop, replaced, before = Stop(runner), [], Stop.current
    _mind_forks()
    if threading.current_thread() is threading.main_thread():
        for name in SIGNALS:
            number = getattr(signal, name, None)
            if number and signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, stop.note)
                replaced.append(number)
    _handled.update(replaced)
    Stop.current = stop
    try:
        yield
    finally:
        Stop.current = before
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)
        _handled.difference_update(replaced)


@cache
def _mind_forks() -> None:
    """Let forks die of a signal at once, as if there were no handlers.

    Those of a pool are waited for. In a handler they would only note it, and
    sleep on if they were about to wait for work. None is lost in between:
    it waits until the fork has its own way with it.
    """
    if not hasattr(os, 'register_at_fork'):
        return
    masks = threading.local()

    def hold() -> None:
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, _handled)

    def release() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    def release_fork() -> None:
        for number in _handled:
            signal.signal(number, signal.SIG_DFL)
        _handled.clear()
        release()

    os.register_at_fork(
        before=hold, after_in_parent=release, after_in_child=release_fork)


def stop_if_asked() -> None:
    """Stop a run that prepares its training; all processes call it alike.

    Raises:
        Stopped: If a signal has asked for it.
    """
    stop = Stop.current
    if stop is not None and stop.meet():
        stop.end()


class OutlivingWorker:
    """Starts a worker of a loader that a signal to all processes spares.

    Its parent would take its death for an error before it could save. The
    parent itself still ends it, by the same signal. Systems that do not tell
    who sent a signal have no such workers.

    Args:
        start (Callable, optional): What started workers so far.
    """

    def __init__(self, start: Optional[Callable[[int], None]]) -> None:
        self.start = start

    def __call__(self, worker: int) -> None:
        if hasattr(signal, 'sigwaitinfo'):
            numbers = {getattr(signal, name) for name in SIGNALS}
            signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
            threading.Thread(
                target=_obey, args=(numbers, os.getppid()),
                daemon=True).start()
        if self.start is not None:
            self.start(worker)


def _obey(numbers: Set[int], parent: int) -> None:
    """End this process when its parent says so."""
    while signal.sigwaitinfo(numbers).si_pid != parent:
        pass
    os._exit(0)
