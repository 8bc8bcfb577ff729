# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Two processes that train together.

They are forks of this one: to start others, which import all of it again,
takes several seconds each.
"""

import os
import socket
from typing import Any, Callable

import torch
import torch.multiprocessing as mp
from mmengine.config import Config

WORLD = 2


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


def set_rank(rank: int, port: int) -> None:
    """What a launcher tells a process, without GPUs and with one thread."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(WORLD),
        LOCAL_SIZE=str(WORLD),
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
        CUDA_VISIBLE_DEVICES='')
    torch.set_num_threads(1)


def join(rank: int, port: int) -> Config:
    """Be that process, and say what runs of the command line would take.

    Returns:
        Config: ``env_cfg`` and ``model_wrapper_cfg``.
    """
    from vim_mm.utils.dist import prepare_cpu_dist
    set_rank(rank, port)
    cfg = Config(dict())
    prepare_cpu_dist(cfg, 'pytorch')
    return cfg


def together(worker: Callable[..., None], *args: Any) -> None:
    """Call ``worker(rank, port, *args)`` in each process.

    Raises:
        ProcessRaisedException: If one fails.
    """
    mp.start_processes(
        worker, (free_port(), *args), WORLD, start_method='fork')
