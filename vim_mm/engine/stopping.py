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
from typing import Callable, Iterator, NoReturn, Optional, Set

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.runner import Runner
from torch.distributed import distributed_c10d

#: Exit code of a run that was asked to stop: EX_TEMPFAIL, "try again".
EXIT_CODE = 75
SIGNALS = ('SIGTERM', 'SIGHUP')
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


class _Forking(threading.local):
    """Lets a fork of a run die of the signals, as a pool expects of its own.

    It would inherit the handler, and Python drops what reaches a fork before
    it has started: so signals wait meanwhile.
    """

    def hold(self) -> None:
        """Before a fork."""
        self.mask = None
        if Stop.current is not None:
            self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _numbers())

    def release(self) -> None:
        """After it, in the process of the run."""
        if self.mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)

    def start(self) -> None:
        """After it, in the fork."""
        for number in _numbers() if self.mask is not None else ():
            if getattr(signal.getsignal(number), '__func__', 0) is Stop.note:
                signal.signal(number, signal.SIG_DFL)
        self.release()


if hasattr(os, 'register_at_fork'):
    _forking = _Forking()
    os.register_at_fork(
        before=_forking.hold,
        after_in_parent=_forking.release,
        after_in_child=_forking.start)


def _numbers() -> Set[int]:
    """Signals that this system has."""
    return {getattr(signal, name) for name in SIGNALS if hasattr(signal, name)}


@contextmanager
def stoppable(runner: Runner) -> Iterator[None]:
    """Within this context signals ask a run to stop.

    Those that the user has handlers for, or ignores (``nohup``), stay as
    they are.

    Args:
        runner (Runner): The run.
    """
    stop, replaced, before = Stop(runner), [], Stop.current
    if threading.current_thread() is threading.main_thread():
        for number in _numbers():
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, stop.note)
                replaced.append(number)
    Stop.current = stop
    try:
        yield
    finally:
        Stop.current = before
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


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
            signal.pthread_sigmask(signal.SIG_BLOCK, _numbers())
            threading.Thread(
                target=_obey, args=(_numbers(), os.getppid()),
                daemon=True).start()
        if self.start is not None:
            self.start(worker)


def _obey(numbers: Set[int], parent: int) -> None:
    """End this process when its parent says so."""
    while signal.sigwaitinfo(numbers).si_pid != parent:
        pass
    os._exit(0)
