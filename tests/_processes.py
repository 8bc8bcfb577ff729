# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Two processes that train together.

They are forks of this one: to start others, which import all of it again,
takes several seconds each.
"""

import socket
from typing import Any, Callable

import torch.multiprocessing as mp

WORLD = 2


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


def together(worker: Callable[..., None], *args: Any) -> None:
    """Call ``worker(rank, port, *args)`` in each process.

    Raises:
        ProcessRaisedException: If one fails.
    """
    mp.start_processes(
        worker, (free_port(), *args), WORLD, start_method='fork')
